from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from influence import EKFAC, Damping, InfluenceError, Share, alone, linear_blocks, materialise
from tests.influence.cases import (
    ABSOLUTE,
    ekfac,
    gauss_newton,
    label_gradients,
    loss_factors,
    mlp,
    on_two_ranks,
    over_positions,
    points,
)

ROUNDING = {"rtol": 0.0, "atol": 1e-10}  # float64, matrices of order 36 with entries of order 1

MODELS = {"mlp": (mlp(), points(30)), "positions": (over_positions(), points(30, positions=4))}
every_model = pytest.mark.parametrize("case", MODELS)


def inverse(curvature: EKFAC, name: str) -> Tensor:
    """The damped inverse of a block as a matrix, [o i, o i]."""
    shape = curvature.state[name].eigenvalues.shape
    return curvature.solve(name, torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)).flatten(1)


def rebuild(curvature: EKFAC, name: str, eigenvalues: Tensor) -> Tensor:
    """Q diag(eigenvalues) Q' with Q = Qs (x) Qa, [o i, o i]."""
    q = torch.kron(curvature.state[name].output_basis, curvature.state[name].input_basis)
    return q @ torch.diag(eigenvalues.flatten()) @ q.T


def test_ekfac_is_the_damped_gauss_newton_inverse_where_the_label_covariance_is_constant() -> None:
    # Zero weights: every point predicts p = 1/C, so the Gauss-Newton matrix is exactly S (x) A.
    model = nn.Sequential(nn.Linear(5, 3)).double()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    batch = points(30)
    exact = gauss_newton(model, batch)["0"] + ABSOLUTE.value * torch.eye(18, dtype=torch.float64)
    torch.testing.assert_close(inverse(ekfac(model, batch), "0"), torch.linalg.inv(exact), **ROUNDING)


@every_model
def test_eigenvalues_are_the_exact_expectation_over_labels_in_the_eigenbasis(case: str) -> None:
    model, batch = MODELS[case]
    curvature = ekfac(model, batch)
    for name, g in label_gradients(model, batch).items():  # [B, C, o, i]
        block = curvature.state[name]
        truth = (block.output_basis.T @ g @ block.input_basis).square().sum(1).mean(0)
        torch.testing.assert_close(block.eigenvalues, truth, **ROUNDING)


@every_model
def test_the_basis_diagonalises_both_covariances(case: str) -> None:
    curvature = ekfac(*MODELS[case])
    for block in curvature.state.values():
        for basis, matrix in (
            (block.input_basis, block.input_covariance),
            (block.output_basis, block.output_covariance),
        ):
            rotated = basis.T @ matrix @ basis
            torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), **ROUNDING)


@every_model
def test_ekfac_is_nearer_to_the_gauss_newton_matrix_than_kfac(case: str) -> None:
    model, batch = MODELS[case]
    curvature = ekfac(model, batch)
    for name, exact in gauss_newton(model, batch).items():
        block = curvature.state[name]
        kfac = torch.kron(block.output_covariance, block.input_covariance)
        ours = rebuild(curvature, name, block.eigenvalues)
        assert (ours - exact).norm() < (kfac - exact).norm()  # the optimal diagonal; strictly, as no case is Kronecker


@every_model
def test_solve_is_the_inverse_of_the_rebuilt_matrix_plus_damping(case: str) -> None:
    curvature = ekfac(*MODELS[case])
    for name, block in curvature.state.items():
        damped = rebuild(curvature, name, block.eigenvalues + ABSOLUTE.value)
        torch.testing.assert_close(inverse(curvature, name), torch.linalg.inv(damped), **ROUNDING)


@every_model
def test_inner_products_of_whitened_gradients_are_those_of_solve(case: str) -> None:
    model, batch = MODELS[case]
    curvature = ekfac(model, batch)
    for name, factor in loss_factors(model, batch).items():
        white, plain = curvature.whiten(name, factor), materialise(factor)
        torch.testing.assert_close(
            white @ white.T, plain.flatten(1) @ curvature.solve(name, plain).flatten(1).T, **ROUNDING
        )


def test_solve_is_repeatable_and_leaves_its_argument_and_the_state_alone() -> None:
    curvature = ekfac(*MODELS["mlp"])
    v = torch.randn(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, eigenvalues = v.clone(), curvature.state["0"].eigenvalues.clone()
    first = curvature.solve("0", v)
    assert curvature.solve("0", v).equal(first)
    assert v.equal(before)
    assert curvature.state["0"].eigenvalues.equal(eigenvalues)


@every_model
def test_points_of_weight_zero_do_not_enter(case: str) -> None:
    model, (x, y) = MODELS[case]
    weights = (torch.arange(30) % 3 > 0).float()
    kept = weights.bool()
    masked, absent = ekfac(model, (x, y), weights=weights), ekfac(model, (x[kept], y[kept]))
    for name in masked.state:
        torch.testing.assert_close(inverse(masked, name), inverse(absent, name), **ROUNDING)


@every_model
@pytest.mark.parametrize("arrange", [lambda x: x.flip(0), lambda x: x], ids=["reversed", "small batches"])
def test_the_curvature_does_not_depend_on_batch_size_or_order(case: str, arrange: Callable[[Tensor], Tensor]) -> None:
    model, (x, y) = MODELS[case]
    whole, pieces = ekfac(model, (x, y)), ekfac(model, (arrange(x), arrange(y)), size=7)
    for name in whole.state:
        torch.testing.assert_close(inverse(pieces, name), inverse(whole, name), **ROUNDING)


@every_model
def test_two_ranks_that_share_the_batches_have_the_curvature_of_one(case: str) -> None:
    model, batch = MODELS[case]
    whole, copies = ekfac(model, batch), (deepcopy(model), deepcopy(model))
    ranks = on_two_ranks(
        lambda share, all_reduce: ekfac(copies[share.rank], batch, size=7, share=share, all_reduce=all_reduce)
    )
    for name in whole.state:
        assert inverse(ranks[0], name).equal(inverse(ranks[1], name))
        torch.testing.assert_close(inverse(ranks[0], name), inverse(whole, name), **ROUNDING)


def test_diagnostics_say_what_was_solved() -> None:
    curvature = ekfac(*MODELS["mlp"], Damping("mean_eig", 0.1))
    for name, found in curvature.diagnostics().items():
        eigenvalues = curvature.state[name].eigenvalues
        damped = eigenvalues + 0.1 * eigenvalues.mean()
        assert found.residual < 1e-12  # rounding
        assert found.damping == pytest.approx(float(0.1 * eigenvalues.mean()))
        assert found.condition == pytest.approx(float(damped.max() / damped.min()))
        assert found.effective_dimension == pytest.approx(float((eigenvalues / damped).sum()))


def test_a_step_out_of_order_is_refused() -> None:
    curvature = EKFAC(linear_blocks(mlp()), Share())
    with pytest.raises(InfluenceError, match="no point of weight 1"):
        curvature.reduce(alone)
    with pytest.raises(InfluenceError, match="0 of its 2 passes"):
        curvature.finish(ABSOLUTE)
    with pytest.raises(InfluenceError, match="no damping yet"):
        curvature.solve("0", torch.zeros(1, 6, 6))
    with pytest.raises(InfluenceError, match="both passes"):
        ekfac(*MODELS["mlp"]).accumulate({}, torch.ones(1))
