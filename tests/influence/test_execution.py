"""How a model is run changes no factor, or is refused: checkpoints, half precision, compilation, fused layers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from influence import (
    FactorSource,
    InfluenceError,
    by_name,
    materialise,
    select,
)
from tests.influence.cases import (
    Batch,
    conv_net,
    images,
    loss,
    mlp,
    over_positions,
    points,
    read,
)
from tests.influence.layers import assert_equal, per_point, pulled


class Checkpointed(nn.Module):
    """Activation checkpoints around the middle of a model over positions."""

    def __init__(self, *, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.norm = nn.Linear(5, 6), nn.LayerNorm(6)
        self.second, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def middle(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu_()).tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(x) if self.reentrant is None else checkpoint(self.middle, x, use_reentrant=self.reentrant)
        return self.head(x.mean(1))


def checkpointed(*, reentrant: bool | None) -> Checkpointed:
    torch.manual_seed(0)
    return Checkpointed(reentrant=reentrant).double()


def test_activation_checkpointing_gives_the_same_factors() -> None:
    batch = points(7, positions=4)
    for names in (("*",), ("second", "head"), ("norm",)):
        plain, saving = (checkpointed(reentrant=how) for how in (None, False))
        expected = read(plain, batch, select(plain, by_name(*names)))
        found = read(saving, batch, select(saving, by_name(*names)))  # several backward passes
        assert_equal(found.losses, expected.losses)
        assert_equal(found.roots or {}, expected.roots or {})


class Around(nn.Module):
    """A re-entrant checkpoint above a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(torch.tanh, self.first(x), use_reentrant=True))


def test_a_re_entrant_checkpoint_is_refused() -> None:
    model = checkpointed(reentrant=True)
    with pytest.raises(InfluenceError, match=r"block 'first' is called .* use_reentrant=False"):
        pulled(model, points(7, positions=4))
    with pytest.raises(InfluenceError, match=r"re-entrant activation checkpoint.* use_reentrant=False"):
        pulled(Around().double(), points(7))


MODELS: dict[str, Callable[[], tuple[nn.Module, Batch]]] = {
    "positions": lambda: (over_positions(), points(7, positions=4)),
    "convolutions": lambda: (conv_net(), images(7)),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_in_bfloat16_or_under_autocast_gives_float32_factors(case: str) -> None:
    model, (x, y) = MODELS[case]()
    truth = {name: materialise(factor).float() for name, factor in pulled(model, (x, y)).items()}
    single = model.float()

    def cast(m: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(m, batch)

    with FactorSource(single, select(single)) as source:
        under_autocast = source.pull(source.forward(cast, (x.float(), y)))
    for factors in (under_autocast, pulled(single.bfloat16(), (x.bfloat16(), y))):
        for name, factor in factors.items():
            assert factor.a.dtype == factor.g.dtype == torch.float32
            error = (materialise(factor) - truth[name]).norm() / truth[name].norm()
            assert error < 0.03  # bfloat16 rounds by up to .004; some twenty roundings, of random sign


def test_a_compiled_model_is_refused() -> None:
    model = mlp()
    with pytest.raises(InfluenceError, match=r"the model is compiled.* as it was before torch.compile"):
        FactorSource(torch.compile(model), select(model))  # type: ignore[arg-type]
    model[2].compile()
    with pytest.raises(InfluenceError, match="2 is compiled"):
        FactorSource(model, select(model))


class Encoder(nn.Module):
    """torch's transformer, pooled over the positions that hold something."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        nothing = (x == 0).all(2)
        h = self.encoder(x, src_key_padding_mask=nothing).masked_fill(nothing[:, :, None], 0)
        return self.head(h.sum(1) / (~nothing).sum(1, keepdim=True))


def encoder() -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    x = torch.randn(5, 4, 6, dtype=torch.float64)
    x[1, 2:] = 0
    return Encoder().double().eval(), (x, torch.arange(5) % 3)


@pytest.mark.parametrize("names", [("*linear?", "*norm?", "head"), ("*.1.linear2",)])
def test_torchs_transformer_does_not_take_its_fused_path_past_the_hooks(names: tuple[str, ...]) -> None:
    model, batch = encoder()
    for block in select(model, by_name(*names)):
        factor = pulled(model, batch, select(model, by_name(*names)))[block.name]
        torch.testing.assert_close(materialise(factor), per_point(model, block, batch), rtol=0, atol=1e-12)


def test_the_inside_of_torchs_attention_is_refused() -> None:
    model, batch = encoder()
    with pytest.raises(InfluenceError, match=r"block 'encoder\.layers\.0\.self_attn\.out_proj' is not called"):
        pulled(model, batch, select(model, by_name("*.0.self_attn.out_proj")))
    with pytest.raises(InfluenceError, match=r"block 'encoder\.layers\.0\.self_attn' returns a tuple, not a tensor"):
        pulled(model, batch, select(model, by_name("*.0.self_attn")))
