from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from influence import Blocks, Factor, Gradients, InfluenceError, select
from influence.curvature import joint, products
from influence.curvature.dual import DualGaussNewton
from influence.curvature.iterative import conjugate_gradients
from influence.curvature.joint import Joint
from influence.curvature.products import combine, factor_product, largest_eigenvalue, model_product, project
from influence.factored import materialise
from tests.influence.cases import (
    ABSOLUTE,
    Batch,
    conv_net,
    fitted,
    images,
    label_gradients,
    logits,
    mlp,
    normed,
    over_positions,
    points,
    query_gradients,
    read,
    split,
)

ROUNDING = {"rtol": 1e-11, "atol": 1e-11}  # float64, products of order 10
MODELS = {
    "mlp": (mlp(), points(30)),
    "positions": (over_positions(), points(30, positions=4)),
    "conv": (conv_net(), images(30)),
    "norm": (normed(), points(30)),
}
every_model = pytest.mark.parametrize("case", MODELS)


class Tokens(nn.Module):
    """Every kind of parameter that is no linear layer's: an embedding, attention, norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(x)).mean(1))


def drawn(joint: Joint, count: int) -> Gradients:
    generator = torch.Generator().manual_seed(3)
    return joint.split(torch.randn(count, joint.parameters, generator=generator, dtype=torch.float64))


def by_parameter(blocks: Blocks, gradients: Gradients) -> dict[str, Tensor]:
    """Block matrices [k, o, i] as the weights and biases that they are made of."""
    found = {}
    for block in blocks:
        full, module = gradients[block.name], block.module
        last = full.shape[2] - (module.bias is not None)
        found[f"{block.name}.weight"] = full[..., :last].reshape(len(full), *module.weight.shape)
        if module.bias is not None:
            found[f"{block.name}.bias"] = full[..., last]
    return found


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, **ROUNDING)


@every_model
@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_product_from_roots_is_that_with_the_matrix(case: str, count: int) -> None:
    model, batch = MODELS[case]
    layout, roots = Joint.of(select(model)), read(model, batch).roots
    assert roots is not None
    rows = torch.cat([one.flatten(2) for one in label_gradients(model, batch).values()], 2).flatten(0, 1)
    v = drawn(layout, count)
    truth = layout.join(v) @ rows.T @ rows / 30 + 0.1 * layout.join(v)
    torch.testing.assert_close(layout.join(factor_product(roots, 0.1)(v)), truth, **ROUNDING)


@pytest.mark.parametrize("block", ["0", "4"])
def test_the_product_on_a_block_alone_is_its_part_of_that_with_others(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = read(mlp(), points(30)).roots
    assert roots is not None
    o, i = roots[block].g.shape[3], roots[block].a.shape[2]
    v = torch.randn(7, o, i, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = combine(roots[block], project(roots[block], v)) / 30 + 0.1 * v
    monkeypatch.setattr(joint, "DENSE_ELEMENTS", 100)
    torch.testing.assert_close(factor_product({block: roots[block]}, 0.1)({block: v})[block], expected, **ROUNDING)


@every_model
@pytest.mark.parametrize("forms", [True, False])
def test_both_routes_give_the_same_in_any_runs(case: str, forms: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = read(*MODELS[case]).roots
    assert roots is not None
    monkeypatch.setattr(products, "_forms", lambda roots, k: forms)
    monkeypatch.setattr(joint, "DENSE_ELEMENTS", 100)
    generator = torch.Generator().manual_seed(0)
    for factor in roots.values():
        full = materialise(factor)  # [R, B, o, i]
        v = torch.randn(4, *full.shape[2:], generator=generator, dtype=torch.float64)
        c = torch.randn(30, 4, len(full), generator=generator, dtype=torch.float64)
        torch.testing.assert_close(project(factor, v), torch.einsum("rboi,koi->bkr", full, v), **ROUNDING)
        torch.testing.assert_close(combine(factor, c), torch.einsum("rboi,bkr->koi", full, c), **ROUNDING)


def test_gradients_of_long_sequences_are_formed_where_many_are_asked_for() -> None:
    def forms(positions: int, k: int) -> bool:
        return products._forms(Factor(torch.empty(2, positions, 256), torch.empty(10, 2, positions, 64)), k)

    assert not forms(1, 1)
    assert not forms(1, 1000)
    assert not forms(128, 1)
    assert forms(128, 100)


@every_model
def test_the_product_through_the_model_is_the_one_from_roots(case: str) -> None:
    model, batch = MODELS[case]
    model, blocks = model.eval(), select(model)
    roots, v = read(model, batch).roots, drawn(Joint.of(blocks), 11)  # more than go through the model at a time
    assert roots is not None
    given = by_parameter(blocks, v)
    found = model_product(model, logits, split(batch, 7), list(given), 0.1)(given)
    assert_equal(found, by_parameter(blocks, factor_product(roots, 0.1)(v)))


def test_any_parameters_of_any_model_can_be_multiplied() -> None:
    torch.manual_seed(0)
    model = Tokens().double().eval()
    x = torch.randint(7, (12, 5))
    values = {name: value.detach() for name, value in model.named_parameters()}
    layout = Joint({name: tuple(value.shape) for name, value in values.items()})
    p = model(x).detach().softmax(1)
    with sdpa_kernel(SDPBackend.MATH):  # the fused one has no batching rule
        jacobian = jacrev(lambda given: functional_call(model, given, (x,)))(values)
    rows = torch.cat([jacobian[name].flatten(2) for name in values], 2)  # [B, C, p]
    lam = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    full = torch.einsum("bcp,bcd,bdq->pq", rows, lam, rows) / 12
    v = drawn(layout, 3)
    found = model_product(model, logits, split((x, x[:, 0]), 5), list(values), 0.1)(v)
    torch.testing.assert_close(layout.join(found), layout.join(v) @ full + 0.1 * layout.join(v), **ROUNDING)


def test_some_parameters_are_multiplied_with_the_others_held() -> None:
    model, batch = mlp().eval(), points(30)
    names = [name for name, _ in model.named_parameters()]
    whole = Joint({name: tuple(value.shape) for name, value in model.named_parameters()})
    v = drawn(whole, 2)
    chosen = names[2:4]
    masked = {name: one * (name in chosen) for name, one in v.items()}
    some = model_product(model, logits, [batch], chosen, 0.1)({name: v[name] for name in chosen})
    every = model_product(model, logits, [batch], names, 0.1)(masked)
    assert not any(one.requires_grad for one in some.values())  # a graph to the others would hold every batch in memory
    assert_equal(some, {name: every[name] for name in chosen})


def test_conjugate_gradients_through_the_model_solve_what_the_dual_solves() -> None:
    model, batch = mlp().eval(), points(30)
    dual = DualGaussNewton(select(model))
    fitted(dual, model, batch)
    gradients = query_gradients(model, points(9, seed=2)).gradients
    given = by_parameter(select(model), gradients)
    product = model_product(model, logits, split(batch, 8), list(given), ABSOLUTE.value)
    found = conjugate_gradients(product, given, tolerance=1e-12).solved
    for name, one in by_parameter(select(model), dual.solve(gradients)).items():
        torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-9)  # condition 1e3


def test_the_product_leaves_its_argument_and_the_model_alone() -> None:
    model, batch = mlp().eval(), points(30)
    names = [name for name, _ in model.named_parameters()]
    v = drawn(Joint({name: tuple(value.shape) for name, value in model.named_parameters()}), 2)
    before, values = {name: one.clone() for name, one in v.items()}, [value.clone() for value in model.parameters()]
    fast = torch.backends.mha.get_fastpath_enabled()
    product = model_product(model, logits, [batch], names, 0.1)
    assert_equal(product(v), product(v))
    assert_equal(v, before)
    assert all(value.equal(kept) for value, kept in zip(model.parameters(), values))
    assert all(value.requires_grad and value.grad is None for value in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_a_model_in_training_mode_or_an_unknown_parameter_is_refused() -> None:
    batches: list[Batch] = [points(3)]
    with pytest.raises(InfluenceError, match=r"training mode.*eval\(\)"):
        model_product(nn.Sequential(nn.Dropout()), logits, batches, [], 0.1)
    with pytest.raises(InfluenceError, match=r"no parameter 4\.gamma, head\.weight"):
        model_product(mlp().eval(), logits, batches, ["0.weight", "head.weight", "4.gamma"], 0.1)


def test_the_largest_eigenvalue_of_a_known_spectrum() -> None:
    basis = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    spectrum = torch.arange(1, 61, dtype=torch.float64).pow(-1)
    full = basis @ torch.diag(spectrum) @ basis.T
    assert largest_eigenvalue(lambda x: x @ full, 60) == pytest.approx(1.0, rel=1e-12)  # (1/9)^40
    assert largest_eigenvalue(lambda x: 3 * x, 2) == pytest.approx(3.0)  # fewer than the vectors it starts from
