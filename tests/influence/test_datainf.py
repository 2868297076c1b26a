import pytest
import torch
from torch import Tensor

from influence import Damping, Fisher, Gradients, Reader, alone, select
from tests.influence.cases import ABSOLUTE, TASK, fitted, gauss_newton, label_gradients
from tests.influence.test_exact import MODELS
from tests.left_out.datainf import DataInf

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def inverses(curvature: DataInf, shapes: dict[str, tuple[int, int]]) -> Gradients:
    """What it takes for the inverse of each block, [p, p]."""
    found = {}
    for name, shape in shapes.items():
        rows = torch.eye(shape[0] * shape[1], dtype=torch.float64).view(-1, *shape)
        zeros = {other: torch.zeros(len(rows), *size, dtype=torch.float64) for other, size in shapes.items()}
        found[name] = curvature.solve({**zeros, name: rows})[name].flatten(1)
    return found


def mean_of_inverses(roots: Tensor, damping: float) -> Tensor:
    """Of roots [n, R, p], by dense algebra."""
    eye = torch.eye(roots.shape[2], dtype=roots.dtype)
    return torch.stack([torch.linalg.inv(one.T @ one + damping * eye) for one in roots]).mean(0)


@pytest.mark.parametrize("case", MODELS)
def test_it_is_the_mean_of_the_points_inverses(case: str) -> None:
    model, batch = MODELS[case]
    blocks = select(model)
    curvature = DataInf(blocks)
    fitted(curvature, model, batch)
    found = inverses(curvature, {block.name: block.weight_shape for block in blocks})
    for name, roots in label_gradients(model, batch).items():
        torch.testing.assert_close(found[name], mean_of_inverses(roots.flatten(2), ABSOLUTE.value), **EXACT)


def test_with_one_root_a_point_it_is_the_formula_of_the_paper() -> None:
    # (1 / (n lam)) sum_i [v - <v, g_i> g_i / (lam + |g_i|^2)]
    model, batch = MODELS["mlp"]
    blocks = select(model)
    with Reader(model, TASK, blocks, Fisher("empirical")) as reader:
        roots = reader.train(batch, 0, torch.arange(30)).roots
    assert roots is not None
    curvature = DataInf(blocks)
    curvature.accumulate(roots, torch.ones(30))
    curvature.reduce(alone)
    curvature.finish(Damping("mean_eig", 0.1))
    found = inverses(curvature, {block.name: block.weight_shape for block in blocks})
    for name, factor in roots.items():
        g = (factor.g[0].mT @ factor.a).flatten(1)  # [n, p]
        damping = 0.1 * float(g.square().mean())
        v = torch.eye(g.shape[1], dtype=g.dtype)
        terms = [(v - (v @ one)[:, None] * one / (damping + one @ one)) / damping for one in g]
        torch.testing.assert_close(found[name], sum(terms) / 30, **EXACT)
        assert curvature.diagnostics()[name].damping == pytest.approx(damping, rel=1e-12)


@pytest.mark.parametrize("case", ["mlp", "positions"])
def test_of_one_point_it_is_the_exact_inverse(case: str) -> None:
    model, (x, y) = MODELS[case]
    blocks, batch = select(model), (x[:1], y[:1])
    curvature = DataInf(blocks)
    fitted(curvature, model, batch)
    found = inverses(curvature, {block.name: block.weight_shape for block in blocks})
    for name, full in gauss_newton(model, batch).items():
        truth = torch.linalg.inv(full + ABSOLUTE.value * torch.eye(len(full), dtype=full.dtype))
        torch.testing.assert_close(found[name], truth, **EXACT)
        eigenvalues = torch.linalg.eigvalsh(full).clamp(min=0)
        diagnosed = curvature.diagnostics()[name]
        assert diagnosed.residual < 1e-11
        dimension = float((eigenvalues / (eigenvalues + ABSOLUTE.value)).sum())
        assert diagnosed.effective_dimension == pytest.approx(dimension, rel=1e-9)
        assert diagnosed.condition == pytest.approx(float(eigenvalues[-1]) / ABSOLUTE.value + 1, rel=1e-6)


def test_of_many_points_it_is_not_the_inverse_and_its_residual_says_so() -> None:
    model, batch = MODELS["mlp"]
    curvature = DataInf(select(model))
    fitted(curvature, model, batch)
    for name, full in gauss_newton(model, batch).items():
        damped = full + ABSOLUTE.value * torch.eye(len(full), dtype=full.dtype)
        eigenvalues = torch.linalg.eigvalsh(full).clamp(min=0)
        diagnosed = curvature.diagnostics()[name]
        assert diagnosed.residual > 0.1
        assert diagnosed.condition == pytest.approx(float(torch.linalg.cond(damped)), rel=0.01)
        assert diagnosed.effective_dimension < float((eigenvalues / (eigenvalues + ABSOLUTE.value)).sum())
