from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from influence import (
    EKFAC,
    KFAC,
    AllReduce,
    Factor,
    FactorSource,
    InfluenceError,
    Share,
    alone,
    by_name,
    linear_blocks,
    select,
)
from influence.curvature import moments
from tests.influence.cases import (
    ABSOLUTE,
    basis,
    conv_net,
    eigenvalues,
    ekfac,
    fitted,
    gauss_newton,
    images,
    inverse,
    kronecker,
    label_gradients,
    loss_factors,
    mlp,
    normed,
    on_two_ranks,
    over_positions,
    points,
    query_gradients,
    read,
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


class SignsFlipped(EKFAC):
    """EK-FAC whose eigenvectors come out with other signs, as they may."""

    def _decompose(self, all_reduce: AllReduce) -> None:
        super()._decompose(all_reduce)
        for side in self._sides():
            side.basis *= torch.tensor([1.0, -1.0]).repeat(len(side.basis))[: len(side.basis)]


@either
def test_a_linear_layer_under_gaussian_loss_has_its_exact_gauss_newton_matrix(kind: type[KFAC]) -> None:
    # The Hessian of |z - y|^2 / 2 in z is I, so the roots are the outputs themselves and H = I (x) mean a a'.
    model, x = nn.Sequential(nn.Linear(5, 3)).double(), points(30)[0]
    with FactorSource(model, select(model)) as source:
        z = source.forward(lambda m, inputs: m(inputs), x)
        roots = source.pull_many(z, torch.eye(3, dtype=torch.float64)[:, None].expand(3, 30, 3))
    curvature = kind(select(model))
    for _ in range(curvature.passes):
        curvature.accumulate(roots, torch.ones(30))
        curvature.reduce(alone)
    curvature.finish(ABSOLUTE)
    a = torch.cat([x, x.new_ones(30, 1)], 1)
    exact = torch.kron(torch.eye(3, dtype=torch.float64), a.T @ a / 30)
    torch.testing.assert_close(rebuild(curvature, "0"), exact, **ROUNDING)
    damped = exact + ABSOLUTE.value * torch.eye(18, dtype=torch.float64)
    torch.testing.assert_close(inverse(curvature, "0"), torch.linalg.inv(damped), **ROUNDING)


@either
def test_one_datum_has_its_exact_gauss_newton_matrix(kind: type[KFAC]) -> None:
    model, one = mlp(), points(1)
    curvature = kronecker(kind, model, one)
    for name, exact in gauss_newton(model, one).items():
        torch.testing.assert_close(rebuild(curvature, name), exact, **ROUNDING)
        assert eigenvalues(curvature, name).min() >= 0  # nor are those of its null space below 0 by rounding


@either
def test_a_constant_label_covariance_has_the_exact_gauss_newton_matrix(kind: type[KFAC]) -> None:
    # Zero weights: every point predicts p = 1/C, so the Gauss-Newton matrix is exactly S (x) A.
    model, batch = nn.Sequential(nn.Linear(5, 3)).double(), points(30)
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    curvature = kronecker(kind, model, batch)
    torch.testing.assert_close(rebuild(curvature, "0"), gauss_newton(model, batch)["0"], **ROUNDING)


@every_model
def test_eigenvalues_are_the_exact_expectation_over_labels_in_the_eigenbasis(case: str) -> None:
    model, batch = MODELS[case]
    curvature = ekfac(model, batch)
    for name, g in label_gradients(model, batch).items():  # [B, C, o, i]
        truth = (g.flatten(2) @ basis(curvature, name)).square().sum(1).mean(0)
        torch.testing.assert_close(eigenvalues(curvature, name).flatten(), truth, **ROUNDING)


class Remembering(EKFAC):
    """EK-FAC that keeps its covariances, of which only what is on and above the diagonal is computed."""

    covariances: list[Tensor]

    def _decompose(self, all_reduce: AllReduce) -> None:
        values = [side.covariance.value for side in self._sides()]
        self.covariances = [value.triu() + value.triu(1).T for value in values]
        super()._decompose(all_reduce)


@every_model
def test_the_basis_diagonalises_both_covariances(case: str) -> None:
    curvature = kronecker(Remembering, *MODELS[case])
    assert isinstance(curvature, Remembering)
    for side, covariance in zip(curvature._sides(), curvature.covariances, strict=True):
        rotated = side.basis.T @ covariance @ side.basis
        torch.testing.assert_close(rotated, torch.diag(side.spectrum), **ROUNDING)
        assert not side.covariance.value.numel()  # of the order of the layer, and no longer needed


@every_model
def test_covariances_computed_in_panels_are_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = MODELS[case]
    plain = ekfac(model, batch)
    monkeypatch.setattr(moments, "PANEL", 2)
    panels = ekfac(model, batch)
    for name in plain.state:
        torch.testing.assert_close(inverse(panels, name), inverse(plain, name), **ROUNDING)


@every_model
def test_covariances_are_means_over_points(case: str) -> None:
    # S sums over roots and positions, A is a mean over positions: so that S (x) A has the scale of the matrix.
    model, batch = MODELS[case]
    curvature = kronecker(Remembering, model, batch)
    assert isinstance(curvature, Remembering)
    for name, g in label_gradients(model, batch).items():
        trace = g.square().sum((1, 2, 3)).mean()
        torch.testing.assert_close(eigenvalues(curvature, name).sum(), trace, **ROUNDING)
    for name, factor in loss_factors(model, batch).items():
        a, inputs = factor.a.flatten(0, 1), curvature.state[name].inputs
        if inputs is not None:
            place = [side is inputs for side in curvature._sides()].index(True)
            torch.testing.assert_close(curvature.covariances[place], a.T @ a / len(a), **ROUNDING)


@every_model
def test_ekfac_is_nearer_to_the_gauss_newton_matrix_than_kfac(case: str) -> None:
    model, batch = MODELS[case]
    ek, k = ekfac(model, batch), kronecker(KFAC, model, batch)
    for name, exact in gauss_newton(model, batch).items():
        # The best diagonal in a common basis; strictly, as no block here is a Kronecker product.
        assert (rebuild(ek, name) - exact).norm() < (rebuild(k, name) - exact).norm()


@either
def test_a_block_without_input_statistics_keeps_the_trace(kind: type[KFAC]) -> None:
    model, batch = MODELS["norm"]
    curvature = kronecker(kind, model, batch)
    assert curvature.state["1"].inputs is None
    torch.testing.assert_close(rebuild(curvature, "1").trace(), gauss_newton(model, batch)["1"].trace(), **ROUNDING)


@every_model
def test_the_signs_of_eigenvectors_do_not_matter(case: str) -> None:
    model, batch = MODELS[case]
    plain, flipped = ekfac(model, batch), kronecker(SignsFlipped, model, batch)
    queries, losses = query_gradients(model, batch).gradients, loss_factors(model, batch)
    for name in plain.state:
        torch.testing.assert_close(inverse(flipped, name), inverse(plain, name), **ROUNDING)
    found, truth = (one.against(queries, own=True, step=True).score(losses) for one in (flipped, plain))
    torch.testing.assert_close(found.dots, truth.dots, **ROUNDING)
    torch.testing.assert_close(found.own.self_influence, truth.own.self_influence, **ROUNDING)


@every_model
@either
def test_points_of_weight_zero_do_not_enter(kind: type[KFAC], case: str) -> None:
    model, (x, y) = MODELS[case]
    weights = (torch.arange(30) % 3 > 0).float()
    kept = weights.bool()
    masked = kind(select(model))
    fitted(masked, model, (x, y), weights=weights)
    absent = kronecker(kind, model, (x[kept], y[kept]))
    for name in masked.state:
        torch.testing.assert_close(inverse(masked, name), inverse(absent, name), **ROUNDING)


@every_model
@pytest.mark.parametrize("arrange", [lambda x: x.flip(0), lambda x: x], ids=["reversed", "small batches"])
def test_the_curvature_does_not_depend_on_batch_size_or_order(case: str, arrange: Callable[[Tensor], Tensor]) -> None:
    model, (x, y) = MODELS[case]
    whole, pieces = ekfac(model, (x, y)), ekfac(model, (arrange(x), arrange(y)), size=7)
    for name in whole.state:
        torch.testing.assert_close(inverse(pieces, name), inverse(whole, name), **ROUNDING)


def test_padding_changes_neither_curvature_nor_scores() -> None:
    model, (x, y) = over_positions(padding=0.0), points(30, positions=4)
    longer = torch.cat([x, x.new_zeros(30, 3, 5)], 1), y
    plain, padded = ekfac(model, (x, y)), ekfac(model, longer)
    for name in plain.state:
        torch.testing.assert_close(inverse(padded, name), inverse(plain, name), **ROUNDING)
    found, truth = padded.own(loss_factors(model, longer)), plain.own(loss_factors(model, (x, y)))
    torch.testing.assert_close(found.self_influence, truth.self_influence, **ROUNDING)


def test_a_point_without_any_gradient_counts_as_a_point_and_nothing_else() -> None:
    model, batch = MODELS["positions"]
    body = select(model, by_name("first", "second"))
    roots = read(model, batch, body).roots
    assert roots is not None
    silent = {name: Factor(factor.a, factor.g.index_fill(1, torch.tensor([0]), 0.0)) for name, factor in roots.items()}
    found, others = KFAC(body), KFAC(body)
    found.accumulate(silent, torch.ones(30))
    others.accumulate({name: factor[1:] for name, factor in roots.items()}, torch.ones(29))
    for curvature in (found, others):
        curvature.reduce(alone)
    for name in silent:  # 29 of 30 points give A, and 29 of 30 give S
        torch.testing.assert_close(rebuild(found, name), (29 / 30) ** 2 * rebuild(others, name), **ROUNDING)


@every_model
@either
def test_two_ranks_that_share_the_batches_have_the_curvature_of_one(kind: type[KFAC], case: str) -> None:
    model, batch = MODELS[case]
    whole, copies = kronecker(kind, model, batch), (deepcopy(model), deepcopy(model))

    def program(share: Share, all_reduce: AllReduce) -> KFAC:
        curvature = kind(select(copies[share.rank]), share)
        fitted(curvature, copies[share.rank], batch, size=7, share=share, all_reduce=all_reduce)
        return curvature

    ranks = on_two_ranks(program)
    for name in whole.state:
        assert inverse(ranks[0], name).equal(inverse(ranks[1], name))
        torch.testing.assert_close(inverse(ranks[0], name), inverse(whole, name), **ROUNDING)


@every_model
def test_a_model_in_float32_has_the_curvature_of_one_in_float64(case: str) -> None:
    model, (x, y) = MODELS[case]
    single, double = ekfac(deepcopy(model).float(), (x.float(), y), size=7), ekfac(model, (x, y))
    for name in double.state:
        # Float32 rounding of factors, 6e-8, over a damping of 1e-2.
        torch.testing.assert_close(inverse(single, name), inverse(double, name), rtol=0, atol=1e-3)
        assert eigenvalues(single, name).dtype == torch.float64


def test_a_step_out_of_order_is_refused() -> None:
    curvature = EKFAC(linear_blocks(mlp()))
    with pytest.raises(InfluenceError, match="no point of weight 1"):
        curvature.reduce(alone)
    with pytest.raises(InfluenceError, match="0 of its 2 passes"):
        curvature.finish(ABSOLUTE)
    with pytest.raises(InfluenceError, match="no damping yet"):
        curvature.solve({"0": torch.zeros(1, 6, 6)})
    with pytest.raises(InfluenceError, match="makes 2 passes, and they are over"):
        ekfac(*MODELS["mlp"]).accumulate({}, torch.ones(1))
