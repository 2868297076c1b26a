"""The factors of every kind of layer are its per-point gradients by torch.func."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from influence import KFAC, Damping, Factor, Factors, alone, available, by_name, materialise, select
from influence.layouts import AnyLayout, LinearLayout, layout_of
from tests.influence.cases import conv_net, images
from tests.influence.layers import POINTS, ROUNDING, Model, Scaled, check, made, per_point, pulled


class Overriding(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class Adapted(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.extra = nn.Parameter(torch.ones(4))


LAYERS: dict[str, tuple[Callable[[], Model], tuple[int, ...], int | None]] = {
    "linear": (lambda: Model(nn.Linear(4, 6), nn.Linear(4, 4)), (4,), None),
    "linear, no bias": (lambda: Model(nn.Linear(4, 6, bias=False)), (4,), None),
    "linear, sequence": (lambda: Model(nn.Linear(4, 6), nn.Linear(4, 4)), (7, 4), None),
    "linear, two leading dimensions": (lambda: Model(nn.Linear(4, 6)), (3, 2, 4), None),
    "embedding": (lambda: Model(nn.Embedding(6, 4)), (9,), 6),  # 9 of 6: tokens repeat
    "embedding, one token": (lambda: Model(nn.Embedding(6, 4)), (), 6),
    "embedding, padding": (lambda: Model(nn.Embedding(6, 4, padding_idx=2)), (9,), 6),
    "layer norm": (lambda: Model(nn.LayerNorm(4), nn.Linear(4, 4)), (7, 4), None),
    "layer norm, no positions": (lambda: Model(nn.LayerNorm(4)), (4,), None),
    "layer norm, no bias": (lambda: Model(nn.LayerNorm(4, bias=False)), (7, 4), None),
    "layer norm, two dimensions": (lambda: Model(nn.LayerNorm((3, 4))), (2, 3, 4), None),
    "group norm": (lambda: Model(nn.GroupNorm(2, 4), channels=True), (4, 5), None),
    "batch norm 1d": (lambda: Model(nn.BatchNorm1d(4), nn.Linear(4, 4)), (4,), None),
    "batch norm 1d, positions": (lambda: Model(nn.BatchNorm1d(4), channels=True), (4, 5), None),
    "batch norm 2d": (lambda: Model(nn.BatchNorm2d(4), nn.Conv2d(2, 4, 3), channels=True), (2, 5, 5), None),
    "own module": (lambda: Model(Scaled(), nn.Linear(4, 4)), (7, 4), None),
    "overridden forward": (lambda: Model(Overriding(4, 4)), (7, 4), None),
    "own activation": (lambda: Model(nn.PReLU(4), nn.Linear(4, 4)), (4,), None),
    "root mean square norm": (lambda: Model(nn.RMSNorm(4), nn.Linear(4, 4)), (7, 4), None),
    "transposed convolution": (lambda: Model(nn.ConvTranspose1d(2, 3, 3), channels=True), (2, 6), None),
    "instance norm": (lambda: Model(nn.InstanceNorm1d(4, affine=True), channels=True), (4, 5), None),
}
CONVOLUTIONS: dict[str, nn.Module] = {
    "1d": nn.Conv1d(4, 6, 3),
    "1d, no bias": nn.Conv1d(4, 6, 3, bias=False),
    "1d, stride, dilation, padding": nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=3),
    "1d, same, even kernel": nn.Conv1d(4, 6, 4, padding="same"),
    "1d, valid": nn.Conv1d(4, 6, 3, padding="valid"),
    "1d, groups": nn.Conv1d(4, 6, 3, groups=2),
    "1d, depthwise": nn.Conv1d(4, 4, 3, groups=4, bias=False),
    "2d": nn.Conv2d(4, 6, 3),
    "2d, all different": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 2)),
    "2d, one pixel": nn.Conv2d(4, 6, 1, bias=False),
    "2d, same": nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(3, 2)),
    "2d, groups": nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    "2d, groups of one pixel": nn.Conv2d(4, 6, 1, groups=2),
    "2d, depthwise, two of each": nn.Conv2d(4, 8, 3, groups=4, padding="same"),
}


@pytest.mark.parametrize("case", LAYERS)
def test_factors_are_per_point_gradients(case: str) -> None:
    make, shape, tokens = LAYERS[case]
    torch.manual_seed(0)
    check(*made(make(), *shape, tokens=tokens))


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_factors_of_a_convolution_are_per_point_gradients(case: str) -> None:
    conv = CONVOLUTIONS[case]
    two = isinstance(conv, nn.Conv2d)
    below = nn.Conv2d(2, 4, 1) if two else nn.Conv1d(2, 4, 1)
    check(*made(Model(copy.deepcopy(conv), below, channels=True), 2, 7, *(6,) * two))


def test_rows_of_the_inputs_of_a_convolution_are_a_view() -> None:
    for factor in pulled(conv_net(), images(6)).values():  # so that their covariance copies nothing
        assert factor.a.flatten(0, 1).data_ptr() == factor.a.data_ptr()


def test_a_subclass_that_is_not_what_its_base_is_goes_through_torch_func() -> None:
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    for module in (Overriding(4, 4), Adapted(), parametrised):
        assert isinstance(layout_of(module), AnyLayout)
    patched = nn.Linear(4, 4)
    patched.forward = lambda x: 2 * nn.functional.linear(x, patched.weight)  # type: ignore[method-assign]
    assert isinstance(layout_of(patched), AnyLayout)
    assert isinstance(layout_of(nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4)), LinearLayout)
    assert layout_of(nn.LayerNorm(4, elementwise_affine=False)) is None


class Twice(Model):
    """The layer is called on the points and on half of their positions."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x)
        return self.classify(self.layer(h)) + self.classify(self.layer(h[:, :, :4] if self.channels else h[:, :3]))


@pytest.mark.parametrize(
    ("layer", "shape", "tokens"),
    [
        (nn.Linear(4, 6), (7, 4), None),
        (nn.Embedding(6, 4, padding_idx=0), (7,), 6),
        (nn.LayerNorm(4), (7, 4), None),
        (nn.Conv1d(2, 4, 3), (2, 9), None),
        (nn.Conv1d(2, 4, 3, groups=2), (2, 9), None),
        (Scaled(), (7, 4), None),
    ],
)
def test_calls_of_one_layer_are_positions_of_one_sequence(
    layer: nn.Module, shape: tuple[int, ...], tokens: int | None
) -> None:
    check(*made(Twice(copy.deepcopy(layer), channels=isinstance(layer, nn.Conv1d)), *shape, tokens=tokens))


class Stack(nn.Module):
    """One module in several places of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)] * 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)


def test_a_module_in_several_places_is_one_block() -> None:
    model = Stack().double()
    assert [block.name for block in select(model)] == ["layers.0", "head"]
    check(model, (torch.randn(POINTS, 4, dtype=torch.float64), torch.arange(POINTS) % 3), "layers.0")


class Changing(Model):
    """What the layer was given, and what it returned, are changed in place afterwards, or copies of them."""

    in_place = True

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x).clone()
        y = self.layer(h)
        y, h = (y, h) if self.in_place else (y.clone(), h.clone())
        y.relu_()
        h += 1
        return self.classify(y) + h.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 6, bias=False), (4,)),
        (nn.Linear(4, 6), (7, 4)),
        (nn.Conv1d(4, 6, 1, bias=False), (4, 7)),
        (nn.Conv1d(4, 6, 1, bias=False, groups=2), (4, 7)),
        (nn.LayerNorm(4), (7, 4)),
        (Scaled(), (7, 4)),
    ],
)
def test_changes_in_place_after_a_layer_change_nothing(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model, batch = made(Changing(copy.deepcopy(layer), channels=isinstance(layer, nn.Conv1d)), *shape)
    (block,) = select(model, by_name("layer"))
    found = materialise(pulled(model, batch, (block,))["layer"])
    model.in_place = False  # autograd itself refuses to find the gradient of the weight otherwise
    torch.testing.assert_close(found, per_point(model, block, batch), rtol=0, atol=ROUNDING)


class ByName(Model):
    """Arguments by keyword, one of which all points share."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return self.classify(self.layer(input=x))
        return self.classify(self.layer(x, torch.eye(4).to(x), shift=x.mean(1, keepdim=True)))


@pytest.mark.parametrize("layer", [nn.Linear(4, 6), Scaled()])
def test_arguments_by_keyword_and_shared_arguments(layer: nn.Module) -> None:
    check(*made(ByName(copy.deepcopy(layer)), 7, 4))


class Positional(nn.Module):
    """Parameters in the model itself, beside layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(7, 4))
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x + self.position).tanh().mean(1))


def test_the_models_own_parameters_are_a_block() -> None:
    torch.manual_seed(0)
    batch = torch.randn(POINTS, 7, 4, dtype=torch.float64), torch.arange(POINTS) % 3
    check(Positional().double(), batch, "model")


class Masked(nn.Module):
    """Attention and pooling over the tokens that are not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        there = tokens != 0  # [B, T]
        q, k, v = self.qkv(self.norm(self.embedding(tokens))).chunk(3, 2)
        weights = (q @ k.mT).masked_fill(~there[:, None], -torch.inf).softmax(2)
        h = self.out(weights @ v).tanh() * there[:, :, None]
        return self.head(h.sum(1) / there.sum(1, keepdim=True))


def test_padding_changes_no_gradient_and_no_input_covariance() -> None:
    torch.manual_seed(0)
    model, y = Masked().double(), torch.arange(POINTS) % 3
    tokens = torch.randint(1, 9, (POINTS, 6))
    tokens[1, 3:] = tokens[2, 5:] = 0
    padded = torch.cat([tokens, torch.zeros(POINTS, 4, dtype=torch.int64)], 1)
    for block in available(model):
        check(model, (padded, y), block.name)
    plain, more = (pulled(model, (given, y)) for given in (tokens, padded))
    for name in plain:
        torch.testing.assert_close(materialise(more[name]), materialise(plain[name]), rtol=0, atol=1e-14)
    solved = [fitted(model, factors).solve({"qkv": torch.ones(1, 12, 5)})["qkv"] for factors in (plain, more)]
    torch.testing.assert_close(solved[1], solved[0], rtol=0, atol=1e-5)  # float32, of order 1


def fitted(model: nn.Module, factors: Factors) -> KFAC:
    """On the loss gradients."""
    curvature = KFAC(available(model))
    curvature.accumulate(
        {name: Factor(factor.a, factor.g[None]) for name, factor in factors.items()}, torch.ones(POINTS)
    )
    curvature.reduce(alone)
    curvature.finish(Damping("absolute", 0.1))
    return curvature


HALF = {**{name: LAYERS[name] for name in ("linear", "embedding", "layer norm", "group norm", "own module")}} | {
    "batch norm": (lambda: Model(nn.BatchNorm1d(4), channels=True), (4, 5), None),
    "convolution": (lambda: Model(nn.Conv1d(4, 6, 3), channels=True), (4, 7), None),
    "groups": (lambda: Model(nn.Conv1d(4, 6, 3, groups=2), channels=True), (4, 7), None),
}


@pytest.mark.parametrize("case", HALF)
def test_factors_of_a_half_precision_model_are_float32(case: str) -> None:
    make, shape, tokens = HALF[case]
    torch.manual_seed(0)
    model, (x, y) = made(make(), *shape, tokens=tokens)
    truth = materialise(pulled(model, (x, y), select(model, by_name("layer")))["layer"])
    factor = pulled(model.bfloat16(), (x if tokens else x.bfloat16(), y), select(model, by_name("layer")))["layer"]
    assert factor.a.dtype == factor.g.dtype == torch.float32
    error = (materialise(factor) - truth).norm() / truth.norm()
    assert error < 0.05  # bfloat16 keeps 8 bits, .004; some five roundings on the way there and back
