"""Several beliefs about the true label joined into one, fitted to given labels of which an unknown share is wrong.

Signals L_s, log-probabilities that never saw the point's own label, give p = softmax(sum_s w_s L_s + b), and the given
label is the true one seen through noise: P(y given) = sum_t p_t T[t, y]. EM finds the mode of the posterior of w, b, T.

One rate for all wrong labels cannot see errors that prefer a class: w below 1 explains them as softness, at no noise
at all. A free T takes natural confusion for noise. So the rates T[t, y], y != t, are drawn from a gamma distribution
whose mean and spread are theirs to set: counts of them are then negative binomial, and the likelihood of their spread
(empirical Bayes) says whether all rates are one (uniform flips) or each pair has its own.

Softness and noise lie on a ridge. On small sets a weak prior says that signals mean what they say: w ~ Gamma(5, 4),
mode 1, and b ~ N(0, 1); some hundred points outweigh it. Signals that know nothing fit any amount of noise, so it is
claimed only where it makes the given labels likelier, by some nats, than both the signals without noise and the class
frequencies without signals.
Notation: n points, C classes, S signals; float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

SHAPE = 5.0  # of the prior of w
RAREST = 1e-9  # mean rate where no label is wrong
SPREADS = torch.logspace(-2, 3, 26, dtype=torch.float64)  # shapes of the gamma distribution; at 1000 all rates are one
NEWTON, HALVINGS, ROUNDS = 20, 40, 500
CONVERGED = 1e-7  # nats per label and round


@dataclass(frozen=True)
class Stack:
    """A fitted stack.

    Attributes:
        weights: w > 0, [S].
        offsets: b, [C].
        transition: T, probability of each given label (columns) by true label (rows), [C, C].
    """

    weights: Tensor
    offsets: Tensor
    transition: Tensor

    def log_probs(self, signals: Tensor, labels: Tensor) -> Tensor:
        """Log-probabilities of each true label once the given one is known, [n, C]."""
        return self._joint(signals, labels).log_softmax(1)

    def log_likelihood(self, signals: Tensor, labels: Tensor) -> float:
        """Of the given labels, nats."""
        return self._joint(signals, labels).logsumexp(1).sum().item()

    def _joint(self, signals: Tensor, labels: Tensor) -> Tensor:
        return _joint(_log_belief(signals, torch.cat([self.weights, self.offsets])), self.transition, labels)


def fit_stack(signals: Tensor, labels: Tensor, evidence: float) -> Stack:
    """Fit a stack to given labels.

    Args:
        signals: log-probabilities from what never saw the point's own label, [S, n, C], float64.
        labels: given labels, [n], int64.
        evidence: nats that noise must gain over none, or none is assumed.
    """
    count, _, classes = signals.shape
    given = one_hot(labels, classes).double()
    free = torch.cat([signals.new_ones(count), signals.new_zeros(classes)])  # w, b
    for _ in range(NEWTON):
        free = _rise(signals, given, free)
    clean = Stack(free[:count], free[count:], _transition(torch.diag(given.sum(0))))
    predicted = one_hot(_log_belief(signals, free).argmax(1), classes).double()
    transition = _transition(predicted.T @ given)  # every disagreement is noise, until the belief takes its part back
    before = -torch.inf
    for _ in range(ROUNDS):
        joint = _joint(_log_belief(signals, free), transition, labels)
        likelihood = joint.logsumexp(1).sum().item()
        if abs(likelihood - before) <= CONVERGED * len(labels):
            break
        before, true = likelihood, joint.softmax(1)  # [n, C]
        transition = _transition(true.T @ given)
        free = _rise(signals, true, free)
    noisy = Stack(free[:count], free[count:], transition)
    counts = given.sum(0)
    unknowing = torch.special.xlogy(counts, counts / counts.sum()).sum().item()
    without = max(clean.log_likelihood(signals, labels), unknowing)
    return noisy if noisy.log_likelihood(signals, labels) - without >= evidence else clean


def _log_belief(signals: Tensor, free: Tensor) -> Tensor:
    """Log-probabilities of the true label before the given one is known, [n, C]."""
    count = len(signals)
    return (torch.einsum("s,snc->nc", free[:count], signals) + free[count:]).log_softmax(1)


def _joint(log_belief: Tensor, transition: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each true label together with the given one, [n, C]."""
    return log_belief + transition.log()[:, labels].T


def _transition(counts: Tensor) -> Tensor:
    """Posterior mean of T.

    Args:
        counts: expected number of points by true label (rows) and given label, [C, C].
    """
    classes = len(counts)
    wrong = ~torch.eye(classes, dtype=torch.bool)
    rows = counts.sum(1, keepdim=True)  # [C, 1]
    rate = (counts[wrong].sum() / counts.sum() / (classes - 1)).clamp_min(RAREST)
    spread = _spread(counts[wrong], (rows * rate).expand_as(counts)[wrong])
    rates = torch.where(wrong, (counts + spread) / (rows + spread / rate), 0.0)
    return rates + torch.diag(1 - rates.sum(1))


def _spread(counts: Tensor, expected: Tensor) -> Tensor:
    """The spread under which counts are likeliest around what is expected of them: negative binomial, [pairs] each."""
    a = SPREADS[:, None]
    tail = a * (a / (a + expected)).log() + counts * (expected / (a + expected)).log()
    log_likelihood = ((counts + a).lgamma() - a.lgamma() + tail).sum(1)  # less what does not depend on a, [spreads]
    best: Tensor = SPREADS[log_likelihood.argmax()]
    return best


def _rise(signals: Tensor, target: Tensor, free: Tensor) -> Tensor:
    """One Newton step on the concave objective below, halved until it does not fall.

    Args:
        signals: [S, n, C].
        target: probabilities of the true label, [n, C].
        free: w, b, [S + C].
    """
    weights, offsets = free[: len(signals)], free[len(signals) :]
    p = _log_belief(signals, free).exp()
    centred = signals - (p * signals).sum(2, keepdim=True)  # [S, n, C]
    weighted = centred * p
    pull = (target * centred).sum((1, 2)) + (SHAPE - 1) * (1 / weights - 1)
    gradient = torch.cat([pull, (target - p).sum(0) - offsets])
    of_weights = torch.einsum("snc,tnc->st", weighted, signals) + torch.diag((SHAPE - 1) / weights.square())
    mixed = weighted.sum(1)  # [S, C]
    of_offsets = torch.diag(p.sum(0) + 1) - p.T @ p
    hessian = torch.cat([torch.cat([of_weights, mixed], 1), torch.cat([mixed.T, of_offsets], 1)])
    step: Tensor = torch.linalg.solve(hessian, gradient)
    start = _objective(signals, target, free)
    for _ in range(HALVINGS):
        if _objective(signals, target, free + step) >= start:
            return free + step
        step = step / 2
    return free


def _objective(signals: Tensor, target: Tensor, free: Tensor) -> float:
    """Expected log-belief of the true labels plus log-prior, nats."""
    weights, offsets = free[: len(signals)], free[len(signals) :]
    if not bool((weights > 0).all()):
        return -torch.inf
    prior = (SHAPE - 1) * (weights.log() - weights).sum() - offsets.square().sum() / 2
    return ((target * _log_belief(signals, free)).sum() + prior).item()
