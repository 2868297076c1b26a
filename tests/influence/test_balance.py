import pytest
import torch
from torch import Tensor

from influence import EKFAC, InfluenceError, Reader, select
from influence.balance import AT_ONCE, balance, products
from influence.redundancy import SLACK
from tests.influence.cases import TASK, ekfac, loss_factors, mlp, per_point_gradients, points
from tests.influence.test_sparse import drawn as drawn_items
from tests.influence.test_sparse import recommender, scored

N = 120
EVERYONE = torch.ones(N, dtype=torch.bool)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Steps in 8 directions, some much longer than others, and classes of 24 points each."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.rand(N, 1, generator=g).square() * 10
    return (torch.randn(N, 8, generator=g) * sizes).double(), torch.arange(N) % 5


def shares(steps: Tensor, cells: list[Tensor], eligible: Tensor) -> Tensor:
    return balance(steps @ steps.T, cells, eligible)


def test_opposite_points_go_together_however_much_each_moves() -> None:
    g = torch.Generator().manual_seed(3)
    loud = 1000 * torch.randn(10, 8, generator=g)
    single = torch.eye(8)[:5] * 3e4  # nothing cancels them but each other, and all of them not
    steps = torch.cat([loud, -loud, single, -single.sum(0, keepdim=True)])
    found = shares(steps, [], torch.ones(len(steps), dtype=torch.bool))
    order = found.argsort()[:20].tolist()
    assert {frozenset(pair) for pair in zip(order[::2], order[1::2])} == {frozenset((i, i + 10)) for i in range(10)}


def test_what_goes_moves_the_fit_by_less_than_a_random_set_and_than_the_smallest_steps() -> None:
    steps, classes = drawn()
    centred = (steps - steps.mean(0)).double()
    found = shares(steps, [classes], EVERYONE)
    for share in (0.2, 0.4, 0.6):
        count = int((found <= share).sum())
        length = centred[found <= share].sum(0).norm()
        random = centred[torch.randperm(N, generator=torch.Generator().manual_seed(1))[:count]].sum(0).norm()
        smallest = centred[centred.norm(dim=1).argsort()[:count]].sum(0).norm()
        assert length < 0.3 * random
        assert length < 0.5 * smallest


def test_a_part_that_all_points_have_in_common_is_of_no_account() -> None:
    steps, classes = drawn()
    assert shares(steps + 5.0, [classes], EVERYONE).equal(shares(steps, [classes], EVERYONE))


def test_so_many_go_as_the_share_says_and_no_class_or_group_gives_more_than_its_part() -> None:
    steps, classes = drawn()
    steps[classes == 0] /= 1000  # the smallest steps, which would go first
    groups = torch.where(torch.arange(N) < 6, 0, -1)
    found = shares(steps, [classes, groups], EVERYONE)
    assert bool(((found > 0) & (found <= 1)).all())
    for share in (0.2, 0.4, 0.6):
        out = found <= share
        assert 0.95 * share * N <= int(out.sum()) <= share * N
        assert all(int(out[classes == value].sum()) <= SLACK * share * 24 for value in range(5))
        assert int(out[groups == 0].sum()) <= SLACK * share * 6


def test_the_order_in_which_points_are_given_changes_nothing() -> None:
    steps, classes = drawn()
    mixed = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    found = shares(steps, [classes], EVERYONE)
    assert shares(steps[mixed], [classes[mixed]], EVERYONE).equal(found[mixed])


def test_points_that_are_not_in_training_neither_count_nor_have_a_number() -> None:
    steps, classes = drawn()
    eligible = torch.arange(N) % 2 == 0
    steps[1] = torch.nan
    found = shares(steps, [classes], eligible)
    assert bool(found[~eligible].isnan().all())
    assert found[eligible].equal(shares(steps[eligible], [classes[eligible]], eligible[eligible]))
    assert bool(shares(steps, [classes], torch.zeros_like(eligible)).isnan().all())


def test_steps_that_are_not_finite_are_refused_by_their_row() -> None:
    steps, classes = drawn()
    steps[3, 2] = torch.inf
    with pytest.raises(InfluenceError, match="row 3 is not finite"):
        shares(steps, [classes], EVERYONE)


def test_products_are_those_of_gradients_and_what_solves_them_however_many_are_solved_at_once() -> None:
    model, train = mlp(), points(AT_ONCE + 9)
    curvature, gradients = ekfac(model, train), per_point_gradients(model, train)
    found = products(curvature, loss_factors(model, train))
    truth = sum(torch.einsum("boi,coi->bc", gradients[name], one) for name, one in curvature.solve(gradients).items())
    torch.testing.assert_close(found, truth)


def test_products_of_points_that_touch_a_large_table_have_their_self_influence_on_the_diagonal() -> None:
    model, batch = recommender(), drawn_items(20, repeats=True)
    blocks = select(model)
    curvature = EKFAC(blocks)
    scored(blocks, curvature, model)
    with Reader(model, TASK, blocks) as reader:
        losses = reader.losses(batch).losses
    found = products(curvature, losses)
    torch.testing.assert_close(found.diagonal(), curvature.own(losses).self_influence)
    torch.testing.assert_close(found, found.T)
