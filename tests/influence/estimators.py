"""Every estimator as a function of train points and queries, in one process and on ranks: what the battery holds.

In one process: train points, queries and a batch size in, influence [n, m] out, of a model that is fixed but where an
estimator needs a training of its own. On ranks: parts of it by number, this rank's.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from influence import (
    EKFAC,
    KFAC,
    PCG,
    AllReduce,
    Arnoldi,
    Blocks,
    Compressor,
    Curvature,
    DualGaussNewton,
    Fisher,
    GaussNewton,
    Identity,
    Influence,
    PairScorer,
    Reader,
    Segment,
    Share,
    Trajectory,
    TurnOver,
    alone,
    each,
    empirical_influence,
    factor_mask,
    fit,
    gaussian,
    head,
    masked_sjlt,
    over_checkpoints,
    principal_logra,
    random_logra,
    select,
    sjlt,
    turn_over_influence,
    unroll,
    unrolled_influence,
)
from influence.compression import coordinate_mask
from tests.influence.cases import ABSOLUTE, TASK, Batch, fitted, loss, loss_factors, mlp, points, split
from tests.left_out.datainf import DataInf
from tests.left_out.diagonal import Diagonal
from tests.left_out.ignoring import ignoring_influence
from tests.left_out.lissa import LiSSA

Score = Callable[[Batch, Batch, int], Tensor]
Parts = Callable[[Batch, Batch, int, Share, AllReduce], dict[int, Tensor]]
Build = Callable[[Blocks, Share], Curvature]
Compress = Callable[[Blocks, Callable[[], KFAC]], Compressor]  # K-FAC of the blocks, for whoever asks for it
TRAIN, QUERIES = points(24), points(6, seed=2)
MODEL = mlp()


@dataclass(frozen=True)
class Row:
    """An estimator.

    Attributes:
        score: in one process.
        parts: on ranks; None: in one process alone.
        along: the dimension that parts are joined along.
    """

    score: Score
    parts: Parts | None
    along: int = 0

    @classmethod
    def of(cls, parts: Parts, along: int = 0) -> "Row":
        """One process has all parts."""

        def score(train: Batch, queries: Batch, size: int) -> Tensor:
            return torch.cat([*parts(train, queries, size, Share(), alone).values()], along)

        return cls(score, parts, along)


@dataclass(frozen=True)
class Engine:
    """Through the public engine; on ranks by what the service puts together."""

    build: Build
    compress: Compress | None = None
    fisher: Fisher = field(default_factory=Fisher)
    only_head: bool = False

    @property
    def row(self) -> Row:
        return Row(self.score, self.parts)

    def score(self, train: Batch, queries: Batch, size: int, *, own: bool = False, model: nn.Module = MODEL) -> Tensor:
        """Influence on the queries, or of every point on itself, [n]."""

        def kfac() -> KFAC:
            found = KFAC(blocks)
            fitted(found, model, train, size=size)
            return found

        blocks = self._blocks(model)
        compressor = None if self.compress is None else self.compress(blocks, kfac)
        curvature = self.build(blocks if compressor is None else compressor.blocks, Share())
        with Influence(model, TASK, curvature, blocks, self.fisher, compressor=compressor) as influence:
            influence.fit(split(train, size), ABSOLUTE, keys_of(train))
            found = influence.pairs(split(train, size), split(queries, 4), own=own)
            return found.self_influence if own else found.influence

    def parts(
        self, train: Batch, queries: Batch, size: int, share: Share, all_reduce: AllReduce, model: nn.Module = MODEL
    ) -> dict[int, Tensor]:
        """By batch of the train points."""

        def kfac() -> KFAC:
            found = KFAC(blocks, share)
            fitted(found, model, train, size=size, share=share, all_reduce=all_reduce)
            return found

        model, pieces = deepcopy(model), split(train, size)
        blocks = self._blocks(model)
        compressor = None if self.compress is None else self.compress(blocks, kfac)
        curvature = self.build(blocks if compressor is None else compressor.blocks, share)
        with Reader(model, TASK, blocks, self.fisher, compressor=compressor) as reader:
            mine = {k: reader.train(pieces[k], k, keys_of(pieces[k])) for k in share.of(len(pieces))}
            asked = each([reader.queries(queries)], len(queries[1]))
        fit([curvature], lambda: [(one, torch.ones(len(one.labels))) for one in mine.values()], all_reduce)
        curvature.finish(ABSOLUTE)
        scorer = PairScorer(curvature, asked, len(train[1]), own=False)
        return {k: scorer.score(reading.losses).influence for k, reading in mine.items()}

    def _blocks(self, model: nn.Module) -> Blocks:
        return (head(model),) if self.only_head else select(model)


def keys_of(batch: Batch) -> Tensor:
    """Of the points, wherever they stand: a twin has its twin's."""
    return (batch[0][:, 0] * 2**40).long()


CURVATURES: dict[str, Build] = {
    "identity": lambda blocks, share: Identity(blocks),
    "diagonal": lambda blocks, share: Diagonal(blocks),
    "datainf": DataInf,
    "kfac": KFAC,
    "ekfac": EKFAC,
    "dense": lambda blocks, share: GaussNewton(blocks),
    "dual": DualGaussNewton,
    "pcg": lambda blocks, share: PCG(blocks, share=share),
    "lissa": lambda blocks, share: LiSSA(blocks, 300, share),
    "arnoldi": lambda blocks, share: Arnoldi(blocks, 20, 60, share=share),
    "arnoldi, published": lambda blocks, share: Arnoldi(blocks, 20, 60, complement=False, share=share),
}


def _by(make: Callable[[Blocks, float], Compressor]) -> Compress:
    return lambda blocks, kfac: make(blocks, 2)


COMPRESSORS: dict[str, Compress] = {
    "factor mask": _by(factor_mask),
    "coordinate mask": _by(coordinate_mask),
    "gaussian": _by(gaussian),
    "sjlt": _by(sjlt),
    "mask + sjlt": _by(masked_sjlt),
    "logra": _by(random_logra),
    "logra, principal": lambda blocks, kfac: principal_logra(blocks, 2, kfac()),
}
ENGINES: dict[str, Engine] = {
    **{name: Engine(build) for name, build in CURVATURES.items()},
    **{f"{name}, ekfac": Engine(EKFAC, compress) for name, compress in COMPRESSORS.items()},
    **{f"{name}, dual": Engine(DualGaussNewton, compress) for name, compress in COMPRESSORS.items()},
    "head": Engine(CURVATURES["dense"], only_head=True),
    "ekfac, empirical fisher": Engine(EKFAC, fisher=Fisher("empirical")),
    "ekfac, sampled fisher": Engine(EKFAC, fisher=Fisher("sampled", draws=2)),
}


@cache
def checkpoints() -> tuple[nn.Module, nn.Module]:
    """The model, and what one step makes of it."""
    after = deepcopy(MODEL)
    _step(after, TRAIN, 1.0)
    return MODEL, after


def tracin(train: Batch, queries: Batch, size: int) -> Tensor:
    scores = [Engine(CURVATURES["identity"]).score(train, queries, size, model=model) for model in checkpoints()]
    return over_checkpoints(scores, [1.0, 0.5])


def tracin_parts(train: Batch, queries: Batch, size: int, share: Share, all_reduce: AllReduce) -> dict[int, Tensor]:
    engine = Engine(CURVATURES["identity"])
    first, second = (engine.parts(train, queries, size, share, all_reduce, model) for model in checkpoints())
    return {k: over_checkpoints([first[k], second[k]], [1.0, 0.5]) for k in first}


def data_values(train: Batch, queries: Batch, size: int, share: Share, all_reduce: AllReduce) -> dict[int, Tensor]:
    """Along two epochs of mini-batches that a point's content deals; every rank records them all and has its queries.

    A step's batch is the training's, not the reading's: `size` is that of the queries'.
    """
    model, dealt = deepcopy(MODEL), keys_of(train) % 3
    trajectory = Trajectory(Reader(model, TASK, select(model)), momentum=0.5, weight_decay=0.01)
    for step in range(6):
        rows = (dealt == step % 3).nonzero()[:, 0]
        batch = train[0][rows], train[1][rows]
        trajectory.record(batch, rows, 0.1)
        _step(model, batch, 0.1)
    pieces = split(queries, max(1, size // 6))
    return {k: trajectory.influence([pieces[k]], len(train[1])) for k in share.of(len(pieces))}


def source(train: Batch, queries: Batch, size: int, share: Share, all_reduce: AllReduce) -> dict[int, Tensor]:
    """Two segments of one curvature."""
    model, pieces = deepcopy(MODEL), split(train, size)
    curvature = EKFAC(select(model), share)
    fitted(curvature, model, train, size=size, share=share, all_reduce=all_reduce)
    with Reader(model, TASK, select(model)) as reader:
        asked = each(map(reader.queries, split(queries, 4)), len(queries[1]))
    gradients = {name: one * asked.doubt[:, None, None] for name, one in asked.gradients.items()}
    met = unroll([Segment(curvature, 5.0), Segment(curvature, 2.0)], gradients)
    mine = {k: loss_factors(model, pieces[k]) for k in share.of(len(pieces))}
    return {k: unrolled_influence([[one], [one]], met, len(train[1])) for k, one in mine.items()}


def fine_tuned(train: Batch, queries: Batch, size: int, share: Share, all_reduce: AllReduce) -> dict[int, Tensor]:
    model, pieces = deepcopy(MODEL), split(train, size)
    asked = split(queries, 4)
    return {k: empirical_influence(model, TASK, [pieces[k]], asked, rate=0.01, steps=3) for k in share.of(len(pieces))}


@cache
def memorizing(seed: int) -> nn.Module:
    """A network that has fitted train points and queries, each with the mask of its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3)).double()
    batch = torch.cat([TRAIN[0], QUERIES[0]]), torch.cat([TRAIN[1], QUERIES[1]])
    masks, solver = TurnOver(model, ["0"], seed), torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        solver.zero_grad()
        with masks.own(keys_of(batch)):
            loss(model, batch).mean().backward()
        solver.step()
    return model.eval()


def turned_over(train: Batch, queries: Batch, size: int, share: Share, all_reduce: AllReduce) -> dict[int, Tensor]:
    """Four families of masks."""
    models, pieces = [deepcopy(memorizing(seed)) for seed in range(4)], split(train, size)

    def of(keys: Tensor) -> Tensor:
        found = [
            turn_over_influence(model, TASK, ["0"], keys, split(queries, max(1, size // 6)), seed)
            for seed, model in enumerate(models)
        ]
        return torch.stack(found).mean(0)

    return {k: of(keys_of(pieces[k])) for k in share.of(len(pieces))}


def ignored(train: Batch, queries: Batch, size: int) -> Tensor:
    groups = torch.arange(len(queries[1]))
    return ignoring_influence(MODEL, TASK, select(MODEL), split(train, size), split(queries, 4), groups, rate=0.1)


def _step(model: nn.Module, batch: Batch, rate: float) -> None:
    model.zero_grad()
    loss(model, batch).mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad


ESTIMATORS: dict[str, Row] = {
    **{name: engine.row for name, engine in ENGINES.items()},
    "tracin": Row(tracin, tracin_parts),
    "data value embedding": Row.of(data_values, along=1),
    "source": Row.of(source),
    "learning by ignoring": Row(ignored, None),
    "empirical": Row.of(fine_tuned),
    "turn-over dropout": Row.of(turned_over),
}
