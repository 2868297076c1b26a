import torch

from influence import Factor, materialise
from influence.factored import rotate


def test_a_gradient_is_the_sum_over_positions_of_outer_products() -> None:
    for positions in (1, 3):
        a, g = torch.randn(4, positions, 5), torch.randn(4, positions, 2)
        truth = torch.stack([sum(torch.outer(g[b, t], a[b, t]) for t in range(positions)) for b in range(4)])
        torch.testing.assert_close(materialise(Factor(a, g)), truth)


def test_rotating_factors_rotates_the_gradient_on_both_sides() -> None:
    factor = Factor(torch.randn(4, 3, 5), torch.randn(4, 3, 2))
    inputs, outputs = torch.randn(5, 5), torch.randn(2, 2)
    torch.testing.assert_close(
        materialise(rotate(factor, inputs, outputs)), outputs.T @ materialise(factor) @ inputs, rtol=1e-4, atol=1e-5
    )
