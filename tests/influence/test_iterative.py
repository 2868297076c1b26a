import pytest
import torch
from torch import Tensor

from influence import (
    EKFAC,
    Curvature,
    Damping,
    Diagnostics,
    Gradients,
    InfluenceError,
    alone,
    by_name,
    materialise,
    select,
)
from influence.curvature.dual import DualGaussNewton
from influence.curvature.identity import Identity
from influence.curvature.iterative import PCG, conjugate_gradients
from influence.curvature.products import Product
from tests.influence.cases import fitted, loss_factors, mlp, points, query_gradients, softmax_regression

PROBLEM = softmax_regression()


def known(eigenvalues: list[float]) -> tuple[Tensor, Tensor, Product]:
    """A symmetric matrix of a given spectrum, its eigenvectors in columns, and the product with it."""
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    full = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    return full, basis, lambda v: {"x": v["x"] @ full}


def drawn(count: int, size: int) -> Gradients:
    return {"x": torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}


def iterations(preconditioner: Curvature | None, blocks: tuple[str, ...], damping: float = 1e-3) -> float:
    """Mean over query gradients, on some blocks of the MLP."""
    model = mlp()
    chosen = select(model, by_name(*blocks))
    curvature = PCG(chosen, preconditioner or Identity(chosen))
    fitted(curvature, model, points(300), Damping("absolute", damping))
    found = curvature.solution(query_gradients(model, points(20, seed=2), chosen).gradients)
    return float(found.iterations.double().mean())


@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_solutions_are_the_inverse_up_to_the_tolerance(tolerance: float) -> None:
    curvature = PCG(select(PROBLEM.model), tolerance=tolerance)
    fitted(curvature, PROBLEM.model, PROBLEM.train, Damping("absolute", PROBLEM.l2))
    gradients = query_gradients(PROBLEM.model, PROBLEM.queries).gradients
    found = curvature.solution(gradients)
    (flat,), (solved,) = ([one.flatten(1) for one in x.values()] for x in (gradients, found.solved))
    damped = PROBLEM.curvature().matrix + PROBLEM.l2 * torch.eye(170, dtype=torch.float64)
    torch.testing.assert_close(found.residuals, (solved @ damped - flat).norm(dim=1) / flat.norm(dim=1))
    assert (found.residuals <= tolerance).all()
    truth = flat @ torch.linalg.inv(damped)
    # The error is at most the residual times the condition, which is 30 here.
    assert ((solved - truth).norm(dim=1) <= 30 * tolerance * truth.norm(dim=1)).all()


def test_as_many_iterations_as_distinct_eigenvalues_suffice() -> None:
    _, _, product = known([5.0] * 10 + [2.0] * 20 + [0.1] * 30)
    assert conjugate_gradients(product, drawn(4, 60), tolerance=1e-10).iterations.tolist() == [3] * 4


def test_every_right_hand_side_has_its_own_stop() -> None:
    full, basis, product = known(torch.logspace(-3, 1, 50).tolist())
    v = torch.cat([torch.zeros(1, 50), basis[:, :1].T, drawn(2, 50)["x"]])
    seen: list[int] = []

    def counting(given: Gradients) -> Gradients:
        seen.append(len(given["x"]))
        return product(given)

    together = conjugate_gradients(counting, {"x": v}, tolerance=1e-8, limit=500)
    assert together.iterations[:2].tolist() == [0, 1]
    assert together.solved["x"][0].count_nonzero() == 0
    assert together.residuals[0] == 0
    assert seen[:3] == [3, 2, 2]  # the zero is never multiplied, the eigenvector once
    for row in range(4):
        alone_ = conjugate_gradients(product, {"x": v[row : row + 1]}, tolerance=1e-8, limit=500)
        assert alone_.iterations[0] == together.iterations[row]
        torch.testing.assert_close(alone_.solved["x"][0], together.solved["x"][row], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(together.solved["x"] @ full, v, rtol=0, atol=1e-7)


def test_a_perfect_preconditioner_needs_one_iteration() -> None:
    full, _, product = known(torch.logspace(-3, 1, 50).tolist())
    inverse = torch.linalg.inv(full)
    found = conjugate_gradients(product, drawn(3, 50), lambda v: {"x": v["x"] @ inverse})
    assert found.iterations.tolist() == [1, 1, 1]
    blocks = ("0", "2", "4")
    assert iterations(DualGaussNewton(select(mlp(), by_name(*blocks))), blocks) == 1


@pytest.mark.parametrize("block", ["0", "2", "4"])
def test_ekfac_saves_iterations_on_a_single_block(block: str) -> None:
    # Seen 14, 7 and 4 against 19, 17 and 12.
    assert iterations(EKFAC(select(mlp(), by_name(block))), (block,)) < iterations(None, (block,)) - 3


def test_a_cut_dual_saves_iterations_on_several_blocks_where_ekfac_does_not() -> None:
    # Seen 8 against 30, and 49 with EK-FAC: it sees curvature where one layer can undo what another does.
    blocks = ("0", "2", "4")
    chosen = select(mlp(), by_name(*blocks))
    cut, plain = iterations(DualGaussNewton(chosen, cut=0.3), blocks), iterations(None, blocks)
    assert cut < plain / 2
    assert plain < iterations(EKFAC(chosen), blocks)


def test_without_convergence_residual_and_remedy_are_named() -> None:
    _, _, product = known(torch.logspace(-6, 1, 50).tolist())
    message = (
        r"2 of 2 right-hand sides did not converge in 5 iterations, largest residual \d\.\de[+-]\d\d, tolerance 1e-06; "
        r"raise the damping or the limit"
    )
    with pytest.raises(InfluenceError, match=message):
        conjugate_gradients(product, drawn(2, 50), limit=5)


def test_a_product_that_is_not_finite_is_no_solution() -> None:
    with pytest.raises(InfluenceError, match=r"2 of 2 .* largest residual nan"):
        conjugate_gradients(lambda v: {"x": v["x"] * torch.nan}, drawn(2, 3), limit=10)


def test_residuals_are_those_of_the_solution_not_of_the_recursion() -> None:
    # Products rounded to float32 let the recursion converge while the solution does not: that is an error.
    full, _, _ = known(torch.logspace(-4, 1, 50).tolist())
    with pytest.raises(InfluenceError, match="multiply in float64"):
        conjugate_gradients(lambda v: {"x": (v["x"].float() @ full.float()).double()}, drawn(3, 50), tolerance=1e-7)


def test_iterations_in_float32_are_refined_to_what_float32_cannot_hold() -> None:
    full, _, _ = known(torch.logspace(-2, 1, 50).tolist())
    seen: list[torch.dtype] = []

    def product(v: Gradients) -> Gradients:
        seen.append(v["x"].dtype)
        return {"x": v["x"] @ full.to(v["x"].dtype)}

    v = drawn(3, 50)
    found = conjugate_gradients(product, v, tolerance=1e-12, limit=1000, working=torch.float32)
    assert seen.count(torch.float64) == 4  # one for every three digits
    assert found.solved["x"].dtype == torch.float64
    assert ((found.solved["x"] @ full - v["x"]).norm(dim=1) <= 1e-12 * v["x"].norm(dim=1)).all()


def test_roots_of_a_float32_model_are_kept_in_float32_and_solve_alike() -> None:
    double, single = mlp(), mlp().float()
    inputs, labels = points(100)
    (asked, answers), found = points(5, seed=2), []
    for model, kind in ((double, torch.float64), (single, torch.float32)):
        curvature = PCG(select(model), tolerance=1e-8)
        fitted(curvature, model, (inputs.to(kind), labels), Damping("absolute", 1e-2))
        assert {factor.g.dtype for factor in curvature._roots.values()} == {kind}
        given = query_gradients(double, (asked, answers)).gradients
        found.append(curvature.solve(given))
    for name, one in found[0].items():
        assert (found[1][name] - one).norm() < 1e-4 * one.norm()  # float32 gradients: 1e-7 times a condition of 300


def test_solutions_do_not_depend_on_how_many_right_hand_sides_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    curvature = PCG(select(PROBLEM.model))
    fitted(curvature, PROBLEM.model, PROBLEM.train, Damping("absolute", PROBLEM.l2))
    gradients = query_gradients(PROBLEM.model, PROBLEM.queries).gradients
    whole = curvature.solution(gradients)
    monkeypatch.setattr("influence.curvature.joint.DENSE_ELEMENTS", 3 * 170)
    pieces = curvature.solution(gradients)
    assert pieces.iterations.equal(whole.iterations)
    # Rounding differs from the first product on; what is left of it is below the tolerance times the condition.
    torch.testing.assert_close(pieces.solved, whole.solved, rtol=0, atol=3e-5)


def test_identity_is_the_inner_product_of_gradients_over_the_damping() -> None:
    model, batch = mlp(), points(30)
    factors = loss_factors(model, batch)
    full = torch.cat([materialise(factor).flatten(1) for factor in factors.values()], 1)
    curvature = Identity(select(model))
    with pytest.raises(InfluenceError, match="no damping yet"):
        curvature.solve({})
    with pytest.raises(InfluenceError, match="no curvature, so 'mean_eig' damping is 0"):
        curvature.finish(Damping("mean_eig", 0.1))
    for damping in (1.0, 0.5):
        curvature.finish(Damping("absolute", damping))
        queries = {name: materialise(factor)[:4] for name, factor in factors.items()}
        found = curvature.against(queries, own=True, step=True).score(factors)
        assert found.own is not None
        assert found.own.squared_step is not None
        torch.testing.assert_close(found.dots, full @ full[:4].T / damping)
        torch.testing.assert_close(found.own.self_influence, full.square().sum(1) / damping)
        torch.testing.assert_close(found.own.squared_step, full.square().sum(1) / damping**2)
    assert curvature.blocks == ("0", "2", "4")
    assert curvature.diagnostics()["2"] == Diagnostics(0.0, 0.0, 1.0, 0.5)
    assert curvature.passes == 0
    curvature.accumulate({}, torch.ones(0))  # as a fit of several curvatures may do: it changes nothing
    curvature.reduce(alone)
    assert curvature.damping == 0.5
