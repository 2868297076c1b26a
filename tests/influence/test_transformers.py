"""Blocks of Hugging Face models, tiny and random: factors of padded batches are the gradients of each point alone."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from influence import (
    Block,
    Blocks,
    FactorSource,
    InfluenceError,
    NotPerPoint,
    available,
    body,
    by_name,
    by_type,
    features,
    large_output,
    layouts,
    materialise,
    move,
    select,
    summed,
)
from influence.layouts import AnyLayout, NormLayout, TableLayout, TransposedLayout, layout_of
from influence.sparse import TableFactor
from tests.influence.layers import as_matrix, dense

EXACT = 1e-10  # float64; gradients are of order .01 to 1
WITHIN_SINGLE = 2e-6  # Llama's norm computes in float32, whatever the model does
POINTS, LENGTH, TOKENS = 5, 9, 40


class Texts(NamedTuple):
    ids: Tensor
    mask: Tensor
    labels: Tensor


def texts() -> Texts:
    """Of different lengths, padded with token 0 on the right; tokens repeat."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 4, 7, 1, 9])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = torch.randint(1, TOKENS, (POINTS, LENGTH), generator=generator) * mask
    return Texts(ids, mask, torch.arange(POINTS) % 3)


def alone(batch: Texts, row: int) -> Texts:
    """One point, without its padding."""
    length = int(batch.mask[row].sum())
    return Texts(*(tensor[[row]][:, :length] if tensor.ndim > 1 else tensor[[row]] for tensor in batch))


def logits(model: nn.Module, batch: Texts) -> Tensor:
    return model(input_ids=batch.ids, attention_mask=batch.mask).logits


def losses(model: nn.Module, batch: Texts) -> Tensor:
    return cross_entropy(logits(model, batch), batch.labels, reduction="none")


SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}


def bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=TOKENS, max_position_embeddings=16, num_labels=3, **SMALL)
    return randomised(transformers.BertForSequenceClassification(config))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=16, n_embd=8, n_layer=2, n_head=2, num_labels=3, pad_token_id=0
    )
    return randomised(transformers.GPT2ForSequenceClassification(config))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=TOKENS, max_position_embeddings=16, num_key_value_heads=1, num_labels=3, pad_token_id=0, **SMALL
    )
    return randomised(transformers.LlamaForSequenceClassification(config))


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 3 + (parameter.ndim == 1))
    return model.double().eval()


MODELS: dict[str, tuple[Callable[[], nn.Module], str, float]] = {
    "bert": (bert, "*position_embeddings", EXACT),
    "gpt2": (gpt2, "*wpe", EXACT),
    "llama": (llama, "", WITHIN_SINGLE),
}
every_model = pytest.mark.parametrize("case", MODELS)


def blocks_of(model: nn.Module, positions: str, *, large: bool = False) -> Blocks:
    """All but the table of positions, which all points share; the vocabulary is too large for one-hot inputs or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "LARGEST_FREE", TOKENS - large)
        return _without(model, positions)


def _without(model: nn.Module, positions: str) -> Blocks:
    shared = by_name(positions)(available(model)) if positions else ()
    return select(model, lambda blocks: tuple(block for block in blocks if block not in shared))


Loss = Callable[[nn.Module, Texts], Tensor]


def gradients(model: nn.Module, block: Block, batch: Texts, loss: Loss = losses) -> dict[str, Tensor]:
    own = dict(block.module.named_parameters(recurse=False))
    return dict(zip(own, torch.autograd.grad(loss(model, batch).sum(), own.values())))


def found(model: nn.Module, blocks: Blocks, batch: Texts, loss: Loss = losses) -> dict[str, Tensor]:
    """Per-point gradients [B, o, i] from one backward pass."""
    with FactorSource(model, blocks) as source:
        factors = source.pull(source.forward(loss, batch))
    return {name: dense(f) if isinstance(f, TableFactor) else materialise(f) for name, f in factors.items()}


@every_model
@pytest.mark.parametrize("large", [False, True])
def test_every_block_of_a_padded_batch_has_the_gradients_of_each_point_alone(case: str, large: bool) -> None:
    make, positions, rounding = MODELS[case]
    model, batch = make(), texts()
    blocks = blocks_of(model, positions, large=large)
    assert large == any(isinstance(block.layout, TableLayout) for block in blocks)
    per_point = found(model, blocks, batch)
    for block in blocks:
        truth = torch.stack([as_matrix(block, gradients(model, block, alone(batch, row))) for row in range(POINTS)])
        assert truth.abs().max() > 1e-4, block.name
        torch.testing.assert_close(per_point[block.name], truth, rtol=0, atol=rounding)


@every_model
def test_padding_and_the_order_and_number_of_points_change_nothing(case: str) -> None:
    make, positions, rounding = MODELS[case]
    model, batch = make(), texts()
    blocks, order = blocks_of(model, positions), torch.tensor([3, 0, 4])
    wider = Texts(*(torch.nn.functional.pad(one, (0, 5)) if one.ndim > 1 else one for one in batch))
    whole = found(model, blocks, batch)
    some = found(model, blocks, Texts(*(one[order] for one in wider)))
    for name, part in some.items():
        torch.testing.assert_close(part, whole[name][order], rtol=0, atol=rounding)


@every_model
def test_a_step_reaches_the_parameters_as_they_lie(case: str) -> None:
    """Moved by the sum of the points' gradients, each parameter changes by what autograd says."""
    make, positions, rounding = MODELS[case]
    model, batch = make(), texts()
    blocks = blocks_of(model, positions)
    truth = {block.name: gradients(model, block, batch) for block in blocks}
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with FactorSource(model, blocks) as source:
        factors = source.pull(source.forward(losses, batch))
    move(blocks, {name: total[0] for name, total in summed([(factors, torch.ones(POINTS))]).items()})
    for block in blocks:
        for name, gradient in truth[block.name].items():
            changed = block.module.get_parameter(name).detach() - before[f"{block.name}.{name}"]
            torch.testing.assert_close(changed, gradient, rtol=0, atol=POINTS * rounding)


def test_conv1d_of_gpt2_is_linear_and_is_selected_with_the_linear_layers() -> None:
    model = gpt2()
    chosen = select(model, features)
    assert {type(block.layout) for block in chosen[:-1]} == {TransposedLayout}
    assert chosen[-1].name == "score"
    assert len(chosen) == 2 * 4 + 1
    assert chosen[0].weight_shape == (24, 9)
    assert select(model, by_type("Conv1D")) == chosen[:-1]


def test_norms_of_torch_are_two_columns_and_others_go_through_torch_func() -> None:
    assert isinstance(layout_of(nn.RMSNorm(4)), NormLayout)
    assert layout_of(nn.RMSNorm(4)).shape == (4, 1)
    assert isinstance(layout_of(llama().model.norm), AnyLayout)


def test_a_table_of_positions_that_all_points_share_is_refused() -> None:
    model = gpt2()
    with pytest.raises(NotPerPoint, match=r"block 'transformer\.wpe' saw 1 rows;"):
        found(model, available(model), texts())


@every_model
def test_gradient_checkpointing_changes_nothing(case: str) -> None:
    make, positions, _ = MODELS[case]
    model, batch = make(), texts()
    truth = found(model, blocks_of(model, positions), batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for name, one in found(model, blocks_of(model, positions), batch).items():
        torch.testing.assert_close(one, truth[name], rtol=0, atol=0)


@every_model
def test_a_bfloat16_model_has_float32_factors_near_those_of_float64(case: str) -> None:
    make, positions, _ = MODELS[case]
    model = make()
    truth = found(model, blocks_of(model, positions), texts())
    model.bfloat16()
    for name, one in found(model, blocks_of(model, positions), texts()).items():
        assert one.dtype == torch.float32
        error = (one - truth[name]).norm() / truth[name].norm()
        assert error < 0.25, name  # bfloat16 keeps 8 bits; through two layers and back


def adapted(model: nn.Module) -> nn.Module:
    """With LoRA on queries and values, both of its matrices random, and a head that is trained."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"], lora_dropout=0.1)
    wrapped = get_peft_model(model, config).double()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return wrapped.eval()


def test_lora_adapters_are_blocks_by_name_and_exact() -> None:
    model, batch = adapted(bert()), texts()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    blocks = select(model, by_name("*.lora_A.*", "*.lora_B.*", "*.modules_to_save.*"))
    assert len(blocks) == 2 * 2 * 2 + 1
    assert {f"{b.name}.{name}" for b in blocks for name, _ in b.module.named_parameters()} == trained
    per_point = found(model, blocks, batch)
    for block in blocks:
        truth = torch.stack([as_matrix(block, gradients(model, block, alone(batch, row))) for row in range(POINTS)])
        assert truth.abs().max() > 1e-4, block.name
        torch.testing.assert_close(per_point[block.name], truth, rtol=0, atol=EXACT)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def writer(vocabulary: int = TOKENS, tied: bool = True) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=16, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=tied
    )
    return randomised(transformers.GPT2LMHeadModel(config))


def next_tokens(model: nn.Module, batch: Texts) -> Tensor:
    """Of each text, summed over its tokens but the first."""
    each = cross_entropy(logits(model, batch)[:, :-1].mT, batch.ids[:, 1:], reduction="none")
    return (each * batch.mask[:, 1:]).sum(1)


@pytest.mark.parametrize("chosen", [("transformer.wte",), ("lm_head",), ("transformer.wte", "lm_head")])
def test_a_vocabulary_that_is_also_the_head_is_one_block_with_both_contributions(chosen: tuple[str, ...]) -> None:
    model, batch = writer(), texts()
    (block,) = select(model, by_name(*chosen))
    assert block.name == "transformer.wte"
    assert block.weight_shape == (TOKENS, 8)
    each = [gradients(model, block, alone(batch, row), next_tokens)["weight"] for row in range(POINTS)]
    assert torch.stack(each).abs().max() > 1e-4
    per_point = found(model, (block,), batch, next_tokens)[block.name]
    torch.testing.assert_close(per_point, torch.stack(each), rtol=0, atol=EXACT)
    before = block.module.weight.detach().clone()
    move((block,), {block.name: per_point.sum(0)})
    torch.testing.assert_close(model.lm_head.weight.detach() - before, sum(each), rtol=0, atol=POINTS * EXACT)


def test_a_shared_weight_that_is_no_such_pair_or_too_large_is_refused() -> None:
    config = transformers.BertConfig(vocab_size=TOKENS, num_labels=3, **SMALL)
    with pytest.raises(InfluenceError, match=r"shares a weight \(bert.*, and only a table and a linear layer wi"):
        select(transformers.BertForMaskedLM(config), by_name("*word_embeddings"))
    said = (
        r'weight \(transformer.wte.weight, lm_head.weight\) of 5000 rows: at most 4096 .* as \["transformer.h.0.\*"\]$'
    )
    with pytest.raises(InfluenceError, match=said):
        select(writer(5000), features)
    named = [block.name for block in select(writer(5000), by_name("transformer.h.0.*"))]
    assert {block.name for block in select(writer(5000), body)} < set(named)


def test_a_large_output_layer_is_no_part_of_the_body_and_a_small_one_is() -> None:
    inner = {f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    for tied in (True, False):
        model = writer(5000, tied)
        output = large_output(available(model))
        assert output is not None
        assert output.name == "lm_head"
        assert {block.name for block in body(available(model))} == inner
        assert {block.name for block in features(available(model))} == inner | {"lm_head"}
    assert {block.name for block in body(available(writer()))} == inner | {"lm_head"}
    assert large_output(available(bert())) is None


def test_a_shared_weight_beside_the_other_layers_is_told_apart_by_their_names() -> None:
    table, head = nn.Embedding(5000, 4), nn.Linear(4, 5000, bias=False)
    head.weight = table.weight
    model = nn.ModuleDict({"one": nn.ModuleDict({"words": table, "up": nn.Linear(4, 4), "down": nn.Linear(4, 4)})})
    model["head"] = head
    with pytest.raises(InfluenceError, match=r'select others, as \["one.up", "one.down"\]$'):
        select(model)
