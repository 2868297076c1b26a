"""Which points a policy may propose, so that about a share q of them is proposed in error.

`mislabeled` reads posteriors that a label is wrong: the largest set whose mean posterior of being right is at most q.
Influence has no say in it: sparing suspicious points of positive influence left flips in and lowered accuracy.

`harmful` tests each point's mean influence V on the queries. Two things could make a harmless point look harmful, and
its p-value is the larger of the two: noise, p = Phi(V / se), and the ordinary spread of influence among good points.
The second matters most: good points truly differ, so that V / se alone rejects far too many. The trusted queries say
what good points look like: each query is scored as if it were a train point, its own column left out, and p is the
rank of the point's relative influence V / sqrt(g' H^-1 g) among theirs (a conformal p-value: Bates et al. 2023,
Annals of Statistics 51(1)). Dividing by self-influence removes what differs between points that were fitted and
queries that were not: the size of the residual. Where points have labels, what the queries near a point say of its
label (conformity.py) is added before the rank is taken, each as a normal score among the queries' own (Stouffer et al.
1949), since the two err on different points: on systematic errors in Fashion-MNIST, 500 queries, half as many again are
found at the same rate. Both hypotheses must fall, so the larger p-value is valid; Benjamini and Hochberg (1995) set the
threshold.

`memorized` ranks the self-influence of a point of the label `memorize` among those of the points that generalize, which
were fitted as it was: p is the conformal p-value of "its fit rests on it no more than a generalizing point's does", or
that of V / se if it is larger.

Influence: nats, positive = helpful, negative = harmful. n points, m queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from influence.conformity import Conformity
from influence.errors import InfluenceError

NEGLIGIBLE = 1e-6  # of the median self-influence


@dataclass(frozen=True)
class Discovery:
    """What one policy found.

    Attributes:
        selected: [n], bool.
        evidence: 1 - posterior or the p-value; smaller is stronger; 1 where not eligible, [n].
        q_value: the smallest q at which the point would be selected; 1 where not eligible, [n].
        threshold: largest evidence selected; 0 if nothing is.
        expected_false_rate: what the rule expects among the selected; at most q, 0 if nothing is selected.
    """

    selected: Tensor
    evidence: Tensor
    q_value: Tensor
    threshold: float
    expected_false_rate: float


@dataclass(frozen=True)
class Influences:
    """Summed over checkpoints where there are several.

    Attributes:
        influence: mean over queries, nats, [n].
        influence_se: its standard error over queries, [n].
        self_influence: g' H^-1 g >= 0, [n].
    """

    influence: Tensor
    influence_se: Tensor
    self_influence: Tensor


@dataclass(frozen=True)
class Trusted:
    """The queries scored as if they were train points: what influence good points have.

    Attributes:
        influence: mean over the other queries, nats, [m].
        self_influence: [m].
    """

    influence: Tensor
    self_influence: Tensor


def trusted(pairs: Tensor, self_influence: Tensor) -> Trusted:
    """Leave each query's effect on itself out.

    Args:
        pairs: influence of queries (rows, as train points) on queries (columns), [m, m], m >= 2.
        self_influence: [m].
    """
    m = len(pairs)
    if m < 2 or pairs.shape != (m, m):
        raise InfluenceError(f"influence of queries on queries has shape {tuple(pairs.shape)}: give [m, m], m >= 2")
    pairs = pairs.double()
    return Trusted((pairs.sum(1) - pairs.diagonal()) / (m - 1), self_influence.double())


def mislabeled(posterior: Tensor, eligible: Tensor, q: float = 0.05) -> Discovery:
    """The largest set whose expected share of right labels is at most q.

    Args:
        posterior: probability that the given label is wrong, [n].
        eligible: points that may be proposed, bool [n].
        q: false-discovery rate, in (0, 1).
    """
    right = _evidence(1 - posterior.double(), eligible)
    order = right.argsort(stable=True)
    count = torch.arange(1, len(right) + 1, device=right.device)
    running = right[order].cumsum(0) / count  # rises: a mean of ever larger terms
    return _discover(right, _unsort(running, order), eligible, q)


def harmful(
    scores: Influences, reference: Trusted, eligible: Tensor, q: float = 0.2, conformity: Conformity | None = None
) -> Discovery:
    """Points whose influence is below zero beyond its error and beyond what trusted points show.

    Args:
        scores: of the points, [n].
        reference: of the queries; with m of them no p-value is below 1 / (m + 1).
        eligible: points that may be proposed, bool [n]; only these count as tested.
        q: false-discovery rate, in (0, 1).
        conformity: of the labels, where there are any; it counts as much as influence.
    """
    beyond_error = torch.special.ndtr(_ratio(scores.influence, scores.influence_se))
    ours = _relative(scores.influence, scores.self_influence)
    theirs = _relative(reference.influence, reference.self_influence)
    if not bool(torch.isfinite(theirs).all()):
        raise InfluenceError(f"influence of query {int((~torch.isfinite(theirs)).nonzero()[0])} is not finite")
    if conformity is not None:
        ours = normal_scores(ours, theirs) + _known(normal_scores(conformity.points, conformity.queries))
        theirs = normal_scores(theirs, theirs) + _known(normal_scores(conformity.queries, conformity.queries))
    beyond_trusted = conformal_p(ours, theirs)
    p = _evidence(torch.maximum(beyond_error, beyond_trusted), eligible)
    return _discover(p, benjamini_hochberg(p, int(eligible.sum())), eligible, q)


def memorized(scores: Influences, eligible: Tensor, q: float = 0.2) -> Discovery:
    """Points of the label `memorize` whose fit rests on themselves more than those of points that generalize do.

    Args:
        scores: of the points, [n].
        eligible: points that may be proposed, bool [n]; only these count as tested, or generalize.
        q: false-discovery rate, in (0, 1).
    """
    own, error = scores.self_influence.double(), scores.influence_se  # labels as memorization_labels at z = 1
    rests = conformal_p(-own, -own[eligible & (scores.influence > error)])
    harms = torch.special.ndtr(_ratio(scores.influence, error))
    tested = (scores.influence < -error) | scores.influence.isnan()
    p = _evidence(torch.maximum(rests, harms).where(tested, 1.0), eligible)
    return _discover(p, benjamini_hochberg(p, int(eligible.sum())), eligible, q)


def conformal_p(values: Tensor, reference: Tensor) -> Tensor:
    """Share of the reference at least as low, the value itself counted: (1 + #{r <= v}) / (1 + m).

    Args:
        values: small is suspicious, [n].
        reference: of points known to be good, [m].

    Returns:
        [n], in [1 / (m + 1), 1].
    """
    ranks = torch.searchsorted(reference.sort().values, values.contiguous(), right=True)
    return ((1 + ranks).double() / (1 + len(reference))).where(~values.isnan(), torch.nan)


def normal_scores(values: Tensor, reference: Tensor) -> Tensor:
    """Ranks among the reference as quantiles of a standard normal; NaN stays.

    Args:
        values: [n].
        reference: [m]; what is NaN in it does not count.
    """
    known = reference[~reference.isnan()].sort().values
    ranks = torch.searchsorted(known, values.contiguous(), right=True)
    scores: Tensor = torch.special.ndtri((ranks + 0.5).double() / (1 + len(known)))
    return scores.where(~values.isnan(), torch.nan)


def benjamini_hochberg(p: Tensor, tested: int) -> Tensor:
    """Adjusted p-values: the smallest false-discovery rate at which each is rejected (Benjamini and Hochberg 1995).

    Args:
        p: [n]; 1 where nothing was tested.
        tested: number of hypotheses, at most n.
    """
    order = p.argsort(stable=True)
    raw = p[order] * tested / torch.arange(1, len(p) + 1, device=p.device)
    adjusted = raw.flip(0).cummin(0).values.flip(0).clamp(max=1)  # a larger p never gets a smaller rate
    return _unsort(adjusted, order)


def _discover(evidence: Tensor, q_value: Tensor, eligible: Tensor, q: float) -> Discovery:
    if not 0 < q < 1:
        raise InfluenceError(f"false-discovery rate q = {q}: give a number between 0 and 1")
    q_value = torch.where(eligible, q_value, 1.0)
    selected = q_value <= q
    if not bool(selected.any()):
        return Discovery(selected, evidence, q_value, 0.0, 0.0)
    return Discovery(selected, evidence, q_value, evidence[selected].max().item(), q_value[selected].max().item())


def _evidence(values: Tensor, eligible: Tensor) -> Tensor:
    if values.shape != eligible.shape:
        raise InfluenceError(f"{tuple(values.shape)} scores and {tuple(eligible.shape)} eligible: give one each")
    unknown = (eligible & ~torch.isfinite(values)).nonzero()
    if len(unknown):
        raise InfluenceError(f"row {int(unknown[0])} has evidence that is not finite: score it again or exclude it")
    return torch.where(eligible, values, 1.0)


def _known(scores: Tensor) -> Tensor:
    """Normal scores, 0, which says nothing, where there is none."""
    return scores.where(~scores.isnan(), 0.0)


def _relative(influence: Tensor, self_influence: Tensor) -> Tensor:
    """Influence per unit of what the point moves; 0, which is no evidence of harm, where that is noise over noise."""
    moved = self_influence.double()
    return _ratio(influence, moved.where(~(moved < NEGLIGIBLE * moved.median()), 0.0).sqrt())


def _ratio(value: Tensor, scale: Tensor) -> Tensor:
    value, scale = value.double(), scale.double()
    return torch.where(scale == 0, value * 0, value / scale)  # value * 0 keeps a NaN


def _unsort(ordered: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(ordered).scatter_(0, order, ordered)
