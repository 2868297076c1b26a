import pytest
from torch import nn

from influence import InfluenceError, UnknownBlock, head, linear_blocks, select, summarize
from tests.influence.cases import mlp


def test_globs_select_linear_layers_in_model_order() -> None:
    assert [block.name for block in select(mlp(), ["4", "[0-2]"])] == ["0", "2", "4"]


def test_a_bias_is_one_more_input_column() -> None:
    with_bias, without = linear_blocks(mlp())[0], linear_blocks(mlp(bias=False))[0]
    assert with_bias.weight_shape == (6, 6)
    assert with_bias.parameters == 36
    assert without.weight_shape == (6, 5)


def test_an_unknown_pattern_lists_what_exists() -> None:
    with pytest.raises(UnknownBlock, match=r"'encoder.\*' matches nothing; the model has 0, 2, 4"):
        select(mlp(), ["0", "encoder.*"])


def test_no_pattern_and_no_linear_layer_are_refused() -> None:
    with pytest.raises(UnknownBlock, match="no block pattern"):
        select(mlp(), [])
    with pytest.raises(UnknownBlock, match="no linear layer"):
        head(nn.Sequential(nn.ReLU()))


def test_the_head_is_the_last_linear_layer() -> None:
    assert head(mlp()).name == "4"


def test_summary_says_which_share_of_the_model_the_blocks_are() -> None:
    model = nn.Sequential(nn.Embedding(10, 3), nn.Linear(3, 4), nn.Linear(4, 2))
    summary = summarize(model, select(model, ["2"]))
    assert summary.names == ("2",)
    assert summary.parameters == 10
    assert summary.share == 10 / (30 + 16 + 10)


def test_a_weight_shared_between_modules_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    model[1].weight = model[0].weight
    with pytest.raises(InfluenceError, match=r"'1' shares its weight \(0.weight, 1.weight\)"):
        select(model, ["*"])
