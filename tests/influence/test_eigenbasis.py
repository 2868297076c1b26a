from copy import deepcopy

import pytest
import torch

from influence import EKFAC, KFAC, Damping, InfluenceError, materialise
from influence.curvature.base import Preconditioned, Solved
from tests.influence.cases import (
    ABSOLUTE,
    conv_net,
    eigenvalues,
    ekfac,
    images,
    inverse,
    kronecker,
    loss_factors,
    mlp,
    normed,
    over_positions,
    points,
    query_gradients,
    rebuild,
)

ROUNDING = {"rtol": 1e-10, "atol": 1e-10}  # float64, matrices of order 36 with inverses of order 100

MODELS = {
    "mlp": (mlp(), points(30)),
    "positions": (over_positions(), points(30, positions=4)),
    "conv": (conv_net(), images(30)),
    "norm": (normed(), points(30)),
}
every_model = pytest.mark.parametrize("case", MODELS)
either = pytest.mark.parametrize("kind", [KFAC, EKFAC])


@every_model
@either
def test_solve_is_the_inverse_of_the_rebuilt_matrix_plus_damping(kind: type[KFAC], case: str) -> None:
    curvature = kronecker(kind, *MODELS[case])
    for name in curvature.state:
        damped = rebuild(curvature, name, ABSOLUTE.value)
        torch.testing.assert_close(inverse(curvature, name), torch.linalg.inv(damped), **ROUNDING)


@every_model
def test_own_terms_and_scores_are_those_of_dense_algebra(case: str) -> None:
    model, batch = MODELS[case]
    curvature, losses = ekfac(model, batch), loss_factors(model, batch)
    queries = query_gradients(model, (batch[0][:5], batch[1][:5])).gradients
    own, step, dots = torch.zeros(30), torch.zeros(30), torch.zeros(30, 5)
    for name, factor in losses.items():
        g, h = materialise(factor).flatten(1), inverse(curvature, name)
        own = own + ((g @ h) * g).sum(1)
        step = step + (g @ h).square().sum(1)
        dots = dots + g @ h @ queries[name].flatten(1).T
    found = curvature.own(losses, step=True)
    torch.testing.assert_close(found.self_influence, own, **ROUNDING)
    torch.testing.assert_close(found.squared_step, step, **ROUNDING)
    assert curvature.own(losses).squared_step is None  # nobody asked for it
    torch.testing.assert_close(curvature.against(queries).score(losses).dots, dots, **ROUNDING)


@every_model
@pytest.mark.parametrize("step", [False, True])
def test_queries_held_in_the_eigenbasis_score_as_solved_ones(case: str, step: bool) -> None:
    model, batch = MODELS[case]
    curvature, losses = ekfac(model, batch), loss_factors(model, batch)
    queries = query_gradients(model, batch).gradients
    rotated: Preconditioned = curvature.against(queries, own=True, step=step)
    assert not isinstance(rotated, Solved)
    found, truth = rotated.score(losses), Solved(curvature, queries, own=True, step=step).score(losses)
    torch.testing.assert_close(found.dots, truth.dots, **ROUNDING)
    torch.testing.assert_close(found.own.self_influence, truth.own.self_influence, **ROUNDING)
    assert (found.own.squared_step is None) == (not step)
    if step:
        torch.testing.assert_close(found.own.squared_step, truth.own.squared_step, **ROUNDING)


@every_model
def test_under_heavy_damping_influence_is_the_gradient_dot(case: str) -> None:
    model, batch = MODELS[case]
    heavy = Damping("absolute", 1e9)
    losses, queries = loss_factors(model, batch), query_gradients(model, batch).gradients
    found = ekfac(model, batch, heavy).against(queries, own=True).score(losses)
    truth = sum(materialise(losses[name]).flatten(1) @ full.flatten(1).T for name, full in queries.items())
    # Relative to the damping every eigenvalue is below 1e-8.
    torch.testing.assert_close(found.dots * heavy.value, truth, rtol=1e-7, atol=1e-7)


def test_solve_is_repeatable_and_leaves_its_argument_and_the_state_alone() -> None:
    curvature = ekfac(*MODELS["mlp"])
    v = torch.randn(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, state = v.clone(), deepcopy(curvature.state)
    first = curvature.solve({"0": v})["0"]
    assert curvature.solve({"0": v})["0"].equal(first)
    assert v.equal(before)
    for name, block in curvature.state.items():
        assert block.outputs.basis.equal(state[name].outputs.basis)
        assert block.eigenvalues.value.equal(state[name].eigenvalues.value)


def test_another_damping_replaces_the_one_before() -> None:
    again, other = ekfac(*MODELS["mlp"]), Damping("mean_eig", 0.3)
    again.finish(other)
    fresh = ekfac(*MODELS["mlp"], other)
    assert all(inverse(again, name).equal(inverse(fresh, name)) for name in fresh.state)


def test_more_damping_lowers_every_self_influence() -> None:
    model, batch = MODELS["mlp"]
    curvature, losses = ekfac(model, batch), loss_factors(model, batch)
    low = curvature.own(losses).self_influence
    curvature.finish(Damping("absolute", 1.0))
    assert (curvature.own(losses).self_influence < low).all()


def test_diagnostics_say_what_was_solved() -> None:
    curvature = ekfac(*MODELS["mlp"], Damping("mean_eig", 0.1))
    for name, found in curvature.diagnostics().items():
        values = eigenvalues(curvature, name)
        damped = values + 0.1 * values.mean()
        assert found.residual < 1e-12  # rounding
        assert found.damping == pytest.approx(float(0.1 * values.mean()))
        assert found.condition == pytest.approx(float(damped.max() / damped.min()))
        assert found.effective_dimension == pytest.approx(float((values / damped).sum()))


def test_a_block_that_was_not_fitted_is_named() -> None:
    with pytest.raises(InfluenceError, match="'other' was not fitted; there are 0, 2, 4"):
        ekfac(*MODELS["mlp"]).solve({"other": torch.zeros(1, 6, 6)})
