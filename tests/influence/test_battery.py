"""What every estimator promises, whatever it approximates: sign, units, and no dependence on how the points are dealt.

`over_models` is none: it brings scores of several models to one scale, and has no unit.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from influence import Damping, Influence, Share, alone, select
from tests.influence.cases import ABSOLUTE, TASK, Batch, on_two_ranks
from tests.influence.estimators import CURVATURES, ENGINES, ESTIMATORS, MODEL, QUERIES, TRAIN

SAME = {"rtol": 1e-6, "atol": 1e-9}  # influence of order .1; conjugate gradients stop at 1e-6
OF_ONE_POINT = {"empirical", "turn-over dropout"}  # what the point, or its mask, does alone, however many there are
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
every_one_on_ranks = pytest.mark.parametrize("name", [name for name, row in ESTIMATORS.items() if row.parts])


def score(name: str, train: Batch, size: int) -> Tensor:
    return ESTIMATORS[name].score(train, QUERIES, size)


def joined(first: Batch, second: Batch) -> Batch:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


@every_estimator
def test_sign_training_on_a_query_itself_helps_it(name: str) -> None:
    scores = score(name, joined(TRAIN, QUERIES), 8)
    assert (scores[len(TRAIN[0]) :].diagonal() > 0).all()


@every_estimator
def test_units_every_point_twice_halves_what_one_of_them_does(name: str) -> None:
    once, twice = score(name, TRAIN, 24), score(name, joined(TRAIN, TRAIN), 24)
    expected = once if name in OF_ONE_POINT else once / 2
    torch.testing.assert_close(twice[:24], expected, **SAME)
    torch.testing.assert_close(twice[24:], expected, **SAME)


@every_estimator
def test_batches_do_not_matter(name: str) -> None:
    torch.testing.assert_close(score(name, TRAIN, 7), score(name, TRAIN, 24), **SAME)


@every_estimator
def test_order_does_not_matter(name: str) -> None:
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    turned = score(name, (TRAIN[0][order], TRAIN[1][order]), 8)
    torch.testing.assert_close(turned, score(name, TRAIN, 8)[order], **SAME)


@every_estimator
def test_duplicates_a_twin_has_its_twins_score(name: str) -> None:
    scores = score(name, joined(TRAIN, (TRAIN[0][5:6], TRAIN[1][5:6])), 8)
    torch.testing.assert_close(scores[24], scores[5], **SAME)


@every_one_on_ranks
def test_one_rank_and_two_give_the_scores_of_one_process(name: str) -> None:
    row = ESTIMATORS[name]

    def program(share: Share, all_reduce: Callable[[Tensor], None]) -> dict[int, Tensor]:
        assert row.parts is not None
        return row.parts(TRAIN, QUERIES, 6, share, all_reduce)

    first, second = on_two_ranks(program)
    assert first
    assert second
    expected = row.score(TRAIN, QUERIES, 24)
    for parts in (program(Share(), alone), first | second):
        found = torch.cat([parts[number] for number in sorted(parts)], row.along)
        torch.testing.assert_close(found, expected, **SAME)


@pytest.mark.parametrize("name", ENGINES)
def test_self_influence_is_the_points_alone(name: str) -> None:
    def own(train: Batch, size: int) -> Tensor:
        return ENGINES[name].score(train, QUERIES, size, own=True)

    once = own(TRAIN, 24)
    assert (once >= 0).all()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(own((TRAIN[0][order], TRAIN[1][order]), 7), once[order], **SAME)
    twice = own(joined(TRAIN, TRAIN), 24)  # of the same mean curvature
    torch.testing.assert_close(twice, torch.cat([once, once]), **SAME)


def test_heavy_damping_leaves_the_inner_product_of_gradients() -> None:
    heavy, inner = Damping("absolute", 1e6), score("identity", TRAIN, 24) * ABSOLUTE.value
    for name, build in CURVATURES.items():
        if name == "arnoldi, published":
            continue  # says 0 in most directions, under any damping
        blocks = select(MODEL)
        with Influence(MODEL, TASK, build(blocks, Share()), blocks) as influence:
            influence.fit([TRAIN], heavy)
            found = influence.pairs([TRAIN], [QUERIES], own=False).influence * heavy.value
        torch.testing.assert_close(found, inner, rtol=1e-4, atol=1e-6, msg=name)
