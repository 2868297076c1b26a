"""What every estimator promises, whatever it approximates: sign, units, and no dependence on how the points are dealt.

An estimator here is a function of a fixed model: train points and queries in, influence [n, m] out. Turn-over dropout,
whose masks belong to a training, has its own tests.
"""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from influence import (
    EKFAC,
    KFAC,
    PCG,
    Blocks,
    Curvature,
    Damping,
    DualGaussNewton,
    GaussNewton,
    Identity,
    Influence,
    PairScorer,
    Reader,
    Share,
    alone,
    coordinate_mask,
    each,
    factor_mask,
    gaussian,
    masked_sjlt,
    random_logra,
    select,
    sjlt,
)
from influence.compression import Compressor
from influence.curvature.arnoldi import Arnoldi
from influence.empirical import empirical_influence
from influence.trajectory import Trajectory
from influence.unrolling import Segment, unroll, unrolled_influence
from tests.influence.cases import (
    ABSOLUTE,
    TASK,
    Batch,
    fitted,
    loss_factors,
    mlp,
    on_two_ranks,
    points,
    query_gradients,
    split,
)
from tests.left_out.datainf import DataInf
from tests.left_out.diagonal import Diagonal
from tests.left_out.ignoring import ignoring_influence
from tests.left_out.lissa import LiSSA

Score = Callable[[Batch, Batch, int], Tensor]  # train points, queries, batch size -> [n, m]
Build = Callable[[Blocks, Share], Curvature]
TRAIN, QUERIES = points(24), points(6, seed=2)
SAME = {"rtol": 1e-6, "atol": 1e-9}  # influence of order .1; conjugate gradients stop at 1e-6
MODEL = mlp()

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
COMPRESSORS: dict[str, Callable[[Blocks, float], Compressor]] = {
    "factor mask": factor_mask,
    "coordinate mask": coordinate_mask,
    "gaussian": gaussian,
    "sjlt": sjlt,
    "mask + sjlt": masked_sjlt,
    "logra": random_logra,
}


Compress = Callable[[Blocks, float], Compressor]


def engine(build: Build, compress: Compress | None = None, *, own: bool = False) -> Score:
    """Influence on the queries, or of every point on itself, [n]."""

    def score(train: Batch, queries: Batch, size: int) -> Tensor:
        blocks = select(MODEL)
        compressor = None if compress is None else compress(blocks, 2)
        curvature = build(blocks if compressor is None else compressor.blocks, Share())
        with Influence(MODEL, TASK, curvature, blocks, compressor=compressor) as influence:
            influence.fit(split(train, size), ABSOLUTE)
            found = influence.pairs(split(train, size), split(queries, 4), own=own)
            return found.self_influence if own else found.influence

    return score


def data_values(train: Batch, queries: Batch, size: int) -> Tensor:
    """Along three steps on all points."""
    model = deepcopy(MODEL)
    trajectory = Trajectory(Reader(model, TASK, select(model)), momentum=0.5, weight_decay=0.01)
    for _ in range(3):
        trajectory.record(train, torch.arange(len(train[1])), 0.1)
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(train[0]), train[1]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    return trajectory.influence(split(queries, size), len(train[1]))


def segmented(train: Batch, queries: Batch, size: int) -> Tensor:
    curvature = EKFAC(select(MODEL))
    fitted(curvature, MODEL, train, size=size)
    with Reader(MODEL, TASK, select(MODEL)) as reader:
        of_queries = each(map(reader.queries, split(queries, size)), len(queries[1]))
    gradients = {name: one * of_queries.doubt[:, None, None] for name, one in of_queries.gradients.items()}
    met = unroll([Segment(curvature, 5.0), Segment(curvature, 2.0)], gradients)
    factors = loss_factors(MODEL, train)
    return unrolled_influence([[factors], [factors]], met, len(train[1]))


def ignored(train: Batch, queries: Batch, size: int) -> Tensor:
    groups = torch.arange(len(queries[1]))
    return ignoring_influence(MODEL, TASK, select(MODEL), split(train, size), split(queries, 4), groups, rate=0.1)


def fine_tuned(train: Batch, queries: Batch, size: int) -> Tensor:
    return empirical_influence(MODEL, TASK, split(train, size), split(queries, 4), rate=0.01, steps=3)


ESTIMATORS: dict[str, Score] = {
    **{name: engine(build) for name, build in CURVATURES.items()},
    **{f"{name}, ekfac": engine(EKFAC, compress) for name, compress in COMPRESSORS.items()},
    **{f"{name}, dual": engine(DualGaussNewton, compress) for name, compress in COMPRESSORS.items()},
    "data value embedding": data_values,
    "source": segmented,
    "learning by ignoring": ignored,
    "empirical": fine_tuned,
}
OF_ONE_POINT = {"empirical"}  # what the point does alone, however many there are
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


def joined(first: Batch, second: Batch) -> Batch:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


@every_estimator
def test_sign_training_on_a_query_itself_helps_it(name: str) -> None:
    scores = ESTIMATORS[name](joined(TRAIN, QUERIES), QUERIES, 8)
    assert (scores[len(TRAIN[0]) :].diagonal() > 0).all()


@every_estimator
def test_units_every_point_twice_halves_what_one_of_them_does(name: str) -> None:
    if name in OF_ONE_POINT:
        twice = ESTIMATORS[name](joined(TRAIN, TRAIN), QUERIES, 24)
        torch.testing.assert_close(twice[:24], ESTIMATORS[name](TRAIN, QUERIES, 24), **SAME)
        return
    once, twice = ESTIMATORS[name](TRAIN, QUERIES, 24), ESTIMATORS[name](joined(TRAIN, TRAIN), QUERIES, 24)
    torch.testing.assert_close(twice[:24], once / 2, **SAME)
    torch.testing.assert_close(twice[24:], once / 2, **SAME)


@every_estimator
def test_batches_do_not_matter(name: str) -> None:
    torch.testing.assert_close(ESTIMATORS[name](TRAIN, QUERIES, 7), ESTIMATORS[name](TRAIN, QUERIES, 24), **SAME)


@every_estimator
def test_order_does_not_matter(name: str) -> None:
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    turned = ESTIMATORS[name]((TRAIN[0][order], TRAIN[1][order]), QUERIES, 8)
    torch.testing.assert_close(turned, ESTIMATORS[name](TRAIN, QUERIES, 8)[order], **SAME)


@every_estimator
def test_duplicates_a_twin_has_its_twins_score(name: str) -> None:
    scores = ESTIMATORS[name](joined(TRAIN, (TRAIN[0][5:6], TRAIN[1][5:6])), QUERIES, 8)
    torch.testing.assert_close(scores[24], scores[5], **SAME)


SELVES: dict[str, Score] = {
    **{name: engine(build, own=True) for name, build in CURVATURES.items()},
    **{f"{name}, ekfac": engine(EKFAC, compress, own=True) for name, compress in COMPRESSORS.items()},
    **{f"{name}, dual": engine(DualGaussNewton, compress, own=True) for name, compress in COMPRESSORS.items()},
}


@pytest.mark.parametrize("name", SELVES)
def test_self_influence_is_the_points_alone(name: str) -> None:
    once = SELVES[name](TRAIN, QUERIES, 24)
    assert (once >= 0).all()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    turned = SELVES[name]((TRAIN[0][order], TRAIN[1][order]), QUERIES, 7)
    torch.testing.assert_close(turned, once[order], **SAME)
    twice = SELVES[name](joined(TRAIN, TRAIN), QUERIES, 24)  # of the same mean curvature
    torch.testing.assert_close(twice, torch.cat([once, once]), **SAME)


@pytest.mark.parametrize("name", CURVATURES)
def test_two_ranks_give_the_scores_of_one(name: str) -> None:
    def program(share: Share, all_reduce: Callable[[Tensor], None]) -> dict[int, Tensor]:
        model, pieces = deepcopy(MODEL), split(TRAIN, 6)
        blocks = select(model)
        curvature = CURVATURES[name](blocks, share)
        with Reader(model, TASK, blocks) as reader:
            mine = {k: reader.train(pieces[k], k, torch.arange(6)) for k in share.of(len(pieces))}
        for _ in range(curvature.passes):
            for reading in mine.values():
                assert reading.roots is not None
                curvature.accumulate(reading.roots, torch.ones(6))
            curvature.reduce(all_reduce)
        curvature.finish(ABSOLUTE)
        scorer = PairScorer(curvature, query_gradients(model, QUERIES), 24, own=False)
        return {k: scorer.score(reading.losses).influence for k, reading in mine.items()}

    first, second = on_two_ranks(program)
    for chunk, scores in program(Share(), alone).items():
        torch.testing.assert_close((first | second)[chunk], scores, **SAME)


def test_heavy_damping_leaves_the_inner_product_of_gradients() -> None:
    heavy, inner = Damping("absolute", 1e6), ESTIMATORS["identity"](TRAIN, QUERIES, 24) * ABSOLUTE.value
    for name, build in CURVATURES.items():
        if name == "arnoldi, published":
            continue  # says 0 in most directions, under any damping
        blocks = select(MODEL)
        with Influence(MODEL, TASK, build(blocks, Share()), blocks) as influence:
            influence.fit([TRAIN], heavy)
            found = influence.pairs([TRAIN], [QUERIES], own=False).influence * heavy.value
        torch.testing.assert_close(found, inner, rtol=1e-4, atol=1e-6, msg=name)
