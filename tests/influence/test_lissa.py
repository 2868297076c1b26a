from itertools import pairwise

import pytest
import torch

from influence import Damping, InfluenceError, select
from tests.influence.cases import fitted, query_gradients, softmax_regression
from tests.influence.test_exact import MODELS, damped_inverse, inverse, matrix
from tests.influence.test_iterative import drawn, known
from tests.left_out.lissa import LiSSA, lissa

PROBLEM = softmax_regression()


def test_the_series_converges_to_the_inverse() -> None:
    curvature = LiSSA(select(PROBLEM.model), 500)
    fitted(curvature, PROBLEM.model, PROBLEM.train, Damping("absolute", PROBLEM.l2))
    gradients = {name: one[:4] for name, one in query_gradients(PROBLEM.model, PROBLEM.queries).gradients.items()}
    found = curvature.solution(gradients)
    (flat,), (solved,) = ([one.flatten(1) for one in x.values()] for x in (gradients, found.solved))
    damped = PROBLEM.curvature().matrix + PROBLEM.l2 * torch.eye(170, dtype=torch.float64)
    truth = flat @ torch.linalg.inv(damped)
    left = (1 - 1 / (1.01 * float(torch.linalg.cond(damped)))) ** 501  # of the slowest direction, 1e-5
    assert ((solved - truth).norm(dim=1) <= (2 * left + 1e-13) * truth.norm(dim=1)).all()
    torch.testing.assert_close(found.residuals, (solved @ damped - flat).norm(dim=1) / flat.norm(dim=1))


@pytest.mark.parametrize("case", ["mlp", "positions"])
def test_what_is_left_after_so_many_steps_is_the_series_formula(case: str) -> None:
    # x / scale = [I - (I - M / scale)^(j + 1)] M^-1 v
    model, batch = MODELS[case]
    curvature = LiSSA(select(model), 20)
    fitted(curvature, model, batch, Damping("absolute", 0.1))
    full = matrix(case)
    eye = torch.eye(len(full), dtype=full.dtype)
    damped = full + 0.1 * eye
    scale = 1.01 * float(torch.linalg.eigvalsh(damped)[-1])
    left = torch.linalg.matrix_power(eye - damped / scale, 21)
    # The largest eigenvalue is that of subspace iteration, to six digits.
    torch.testing.assert_close(inverse(curvature, case), (eye - left) @ damped_inverse(case, 0.1), rtol=1e-5, atol=1e-5)


def test_residuals_fall_with_the_iterations() -> None:
    full, _, product = known(torch.logspace(-2, 1, 50).tolist())
    found = [lissa(product, drawn(3, 50), 10.1, iterations) for iterations in (1, 10, 100, 1000)]
    for before, after in pairwise(found):
        assert (after.residuals < before.residuals).all()
    back = found[-1].solved["x"] @ full - drawn(3, 50)["x"]
    torch.testing.assert_close(found[-1].residuals, back.norm(dim=1) / drawn(3, 50)["x"].norm(dim=1))


def test_a_zero_is_solved_by_zero() -> None:
    _, _, product = known([1.0, 2.0, 3.0])
    found = lissa(product, {"x": torch.zeros(1, 3, dtype=torch.float64)}, 4.0, 10)
    assert found.solved["x"].count_nonzero() == 0
    assert found.residuals.tolist() == [0]


@pytest.mark.parametrize("iterations", [100, 5000], ids=["large", "not finite"])
def test_a_scale_that_is_too_small_diverges_and_says_so(iterations: int) -> None:
    _, _, product = known([10.0, 1.0, 0.1])
    message = rf"LiSSA diverged: residual \S+ after {iterations} iterations, scale 4; give a scale above the largest"
    with pytest.raises(InfluenceError, match=message):
        lissa(product, drawn(2, 3), 4.0, iterations)


def test_a_damping_of_the_wrong_sign_diverges() -> None:
    _, _, product = known([5.0 - 0.1, 1.0 - 0.1, 0.0 - 0.1])
    with pytest.raises(InfluenceError, match="LiSSA diverged"):
        lissa(product, drawn(2, 3), 5.1, 1000)


def test_diagnostics_say_how_far_the_series_is_from_the_inverse() -> None:
    model, batch = MODELS["mlp"]
    found = {}
    for iterations in (10, 1000):
        curvature = LiSSA(select(model), iterations)
        fitted(curvature, model, batch, Damping("absolute", 0.1))
        (found[iterations],) = curvature.diagnostics().values()
    eigenvalues = torch.linalg.eigvalsh(matrix("mlp"))
    dimension = float((eigenvalues / (eigenvalues + 0.1)).sum())
    assert found[1000].residual < 1e-3 < 0.1 < found[10].residual
    # three standard errors of 16 probes
    assert found[1000].effective_dimension == pytest.approx(dimension, abs=3 * (dimension / 8) ** 0.5)
    assert found[10].effective_dimension > found[1000].effective_dimension
    assert found[10].condition == pytest.approx(float(eigenvalues[-1]) / 0.1 + 1, rel=1e-5)


def test_no_iterations_are_refused() -> None:
    with pytest.raises(InfluenceError, match="0 iterations of LiSSA: give at least 1"):
        LiSSA(select(PROBLEM.model), 0)
