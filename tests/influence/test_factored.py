import pytest
import torch
from torch import Tensor

from influence import Factor, factored, materialise
from influence.factored import by_pieces, dots, pieces, rotate, squared_norms, total

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # float64, entries of order 1


def drawn(points: int, positions: int, outputs: int, inputs: int) -> Factor:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Factor(normal(points, positions, inputs), normal(points, positions, outputs))


@pytest.mark.parametrize("positions", [1, 3])
def test_a_gradient_is_the_sum_over_positions_of_outer_products(positions: int) -> None:
    factor = drawn(4, positions, 2, 5)
    a, g = factor.a, factor.g
    truth = torch.stack([sum(torch.outer(g[b, t], a[b, t]) for t in range(positions)) for b in range(4)])
    torch.testing.assert_close(materialise(factor), truth, **ROUNDING)


@pytest.mark.parametrize("positions", [1, 3])
def test_gradients_of_several_functions_share_their_inputs(positions: int) -> None:
    one, other = drawn(4, positions, 2, 5), drawn(4, positions, 2, 5)
    both = Factor(one.a, torch.stack([one.g, 2 * other.g]))
    truth = torch.stack([materialise(one), 2 * materialise(other)])
    torch.testing.assert_close(materialise(both), truth, **ROUNDING)
    torch.testing.assert_close(materialise(both[1:3]), truth[:, 1:3], **ROUNDING)


def test_rotating_factors_rotates_the_gradient_on_both_sides() -> None:
    factor = drawn(4, 3, 2, 5)
    inputs, outputs = drawn(1, 5, 2, 5).a[0], drawn(1, 2, 2, 5).g[0]
    truth = outputs.T @ materialise(factor) @ inputs
    torch.testing.assert_close(materialise(rotate(factor, inputs, outputs)), truth, **ROUNDING)
    torch.testing.assert_close(materialise(rotate(factor, None, None)), materialise(factor), **ROUNDING)


@pytest.mark.parametrize("queries", [1, 2, 9], ids=["one", "few", "more than a side"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)], ids=["fewer inputs", "fewer outputs"])
@pytest.mark.parametrize("positions", [1, 3])
def test_inner_products_are_the_same_by_every_route(positions: int, shape: tuple[int, int], queries: int) -> None:
    factor, others = drawn(7, positions, *shape), materialise(drawn(queries, 1, *shape)) + 1
    truth = torch.einsum("boi,koi->bk", materialise(factor), others)
    torch.testing.assert_close(dots(factor, others), truth, **ROUNDING)


@pytest.mark.parametrize("positions", [1, 3])
def test_squared_norms_are_those_of_the_gradients(positions: int) -> None:
    factor = drawn(7, positions, 3, 4)
    torch.testing.assert_close(squared_norms(factor), materialise(factor).square().sum((1, 2)), **ROUNDING)


def test_pieces_are_all_points_in_order_and_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = drawn(7, 3, 3, 4)
    others, whole = materialise(factor)[:2], squared_norms(factor)
    found = dots(factor, others)
    monkeypatch.setattr(factored, "DENSE_ELEMENTS", 30)  # two gradients of twelve numbers
    cut = list(pieces(factor))
    assert torch.cat([torch.arange(7)[piece] for piece in cut]).tolist() == list(range(7))
    assert max(len(factor[piece]) for piece in cut) == 2
    torch.testing.assert_close(squared_norms(factor), whole, **ROUNDING)
    torch.testing.assert_close(dots(factor, others), found, **ROUNDING)
    monkeypatch.setattr(factored, "DENSE_ELEMENTS", 1)  # never less than one point at a time
    torch.testing.assert_close(by_pieces(factor, lambda full: full), materialise(factor), **ROUNDING)


def test_totals_over_blocks_are_float64() -> None:
    # 1 is lost beside 1e8 in float32.
    ones = Factor(torch.ones(2, 1, 1), torch.ones(2, 1, 1))
    large = Factor(torch.full((2, 1, 1), 1e4), torch.ones(2, 1, 1))
    found = total({"large": large, "one": ones}, lambda _, factor: squared_norms(factor))
    assert found.tolist() == [1e8 + 1, 1e8 + 1]
