"""Which blocks there are, how they are chosen, and what share of the model they are."""

from itertools import combinations

import pytest
import torch
from torch import nn

from influence import (
    Blocks,
    InfluenceError,
    UnknownBlock,
    available,
    by_name,
    by_type,
    features,
    head,
    holding,
    last,
    linear_blocks,
    select,
    summarize,
    trained,
    within,
)
from tests.influence.cases import mlp


def model() -> nn.Sequential:
    """Blocks of 30, 24, 6, 20 and 5 parameters."""
    return nn.Sequential(nn.Embedding(10, 3), nn.Conv1d(3, 2, 3), nn.LayerNorm(3), nn.Linear(3, 5), nn.PReLU(5))


def names(blocks: Blocks) -> list[str]:
    return [block.name for block in blocks]


def test_every_module_with_parameters_of_its_own_is_a_block_in_model_order() -> None:
    blocks = available(model())
    assert names(blocks) == ["0", "1", "2", "3", "4"]
    assert [block.weight_shape for block in blocks] == [(3, 10), (2, 10), (3, 2), (5, 4), (5, 1)]
    assert [block.parameters for block in blocks] == [30, 20, 6, 20, 5]
    assert names(select(model())) == names(blocks)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 4),
        nn.Linear(3, 4, bias=False),
        nn.Conv2d(4, 6, (3, 2), groups=2),
        nn.Conv1d(4, 6, 3, bias=False),
        nn.GroupNorm(2, 4),
        nn.LayerNorm((2, 3), bias=False),
        nn.LSTM(3, 4),
    ],
)
def test_a_block_has_as_many_parameters_as_its_module(module: nn.Module) -> None:
    (block,) = available(nn.Sequential(module))
    assert block.parameters == sum(parameter.numel() for parameter in module.parameters())


def test_the_model_itself_may_be_a_block() -> None:
    assert names(available(nn.Linear(2, 3))) == ["model"]
    two = nn.Module()
    two.scale, two.model = nn.Parameter(torch.ones(1)), nn.Linear(2, 3)
    with pytest.raises(UnknownBlock, match="own parameters and its child 'model'"):
        available(two)


def test_a_model_without_parameters_has_no_block_and_one_without_linear_layers_no_head() -> None:
    with pytest.raises(UnknownBlock, match="the model has no parameters"):
        select(nn.Sequential(nn.ReLU()))
    with pytest.raises(UnknownBlock, match="'Linear' matches nothing; the model has LayerNorm"):
        head(nn.Sequential(nn.LayerNorm(2)))


def test_the_head_is_the_last_linear_layer() -> None:
    assert head(model()).name == "3"
    assert names(linear_blocks(mlp())) == ["0", "2", "4"]


def test_globs_select_in_model_order() -> None:
    assert names(select(mlp(), by_name("4", "[0-2]"))) == ["0", "2", "4"]


def test_types_are_those_of_torch_nn_and_their_bases() -> None:
    assert names(select(model(), by_type("Linear", "Conv1d"))) == ["1", "3"]
    assert names(select(model(), by_type("_ConvNd"))) == ["1"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (by_name("0", "encoder.*"), r"block pattern 'encoder\.\*' matches nothing; the model has 0, 1, 2, 3, 4"),
        (by_name(), "no block pattern given; the model has 0, 1"),
        (by_type("Conv2d"), "block type 'Conv2d' matches nothing; the model has Embedding, Conv1d, LayerNorm"),
        (by_type(), "no block type given"),
        (last(6), "the last 6 blocks are asked for, the model has 5"),
        (last(0), "the last 0 blocks"),
        (within(4), "a budget of 4 parameters does not hold block '4' with its 5; raise"),
        (holding(0.5, {"0": 1.0}), "the gradient energy of block '1' is not given"),
        (holding(0.5, dict.fromkeys("01234", 0.0)), "no block has gradient energy"),
    ],
)
def test_a_selection_that_finds_nothing_says_what_there_is(selection: object, message: str) -> None:
    with pytest.raises(UnknownBlock, match=message):
        select(model(), selection)  # type: ignore[arg-type]


def test_the_last_blocks_within_a_budget() -> None:
    assert names(select(model(), last(2))) == ["3", "4"]
    assert names(select(model(), within(31))) == ["2", "3", "4"]
    assert names(select(model(), within(30))) == ["3", "4"]
    assert names(select(model(), within(81))) == ["0", "1", "2", "3", "4"]


def test_selections_compose_in_any_order_that_makes_sense() -> None:
    assert names(select(model(), by_type("Linear", "Embedding"), last(1))) == ["3"]
    assert names(select(model(), last(3), by_type("LayerNorm"))) == ["2"]
    with pytest.raises(UnknownBlock, match="'Embedding' matches nothing; the model has Linear, PReLU"):
        select(model(), last(2), by_type("Embedding"))


ENERGIES = {"0": 10.0, "1": 2.0, "2": 6.0, "3": 80.0, "4": 2.0}


@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 0.81, 0.9, 0.97, 1.0])
def test_auto_holds_the_share_and_no_block_of_it_can_be_left_out(share: float) -> None:
    chosen = select(model(), holding(share, ENERGIES))

    def held(blocks: Blocks) -> float:
        return sum(ENERGIES[block.name] for block in blocks) / 100

    assert held(chosen) >= share - 1e-9
    assert names(chosen) == sorted(names(chosen))
    assert all(held(less) < share for less in combinations(chosen, len(chosen) - 1))


def test_auto_takes_the_fewest_parameters_here() -> None:
    assert names(select(model(), holding(0.8, ENERGIES))) == ["3"]
    assert names(select(model(), holding(0.86, ENERGIES))) == ["2", "3"]
    dense = {"0": 95.0, "1": 0.0, "2": 0.0, "3": 0.0, "4": 20.0}  # block 4 is denser, but block 0 does without it
    assert names(select(model(), holding(0.8, dense))) == ["0"]


@pytest.mark.parametrize("share", [0.0, 1.1, -1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(InfluenceError, match=r"of the gradient energy: give a number in \(0, 1\]"):
        holding(share, ENERGIES)


def test_summary_says_which_share_of_the_model_and_of_the_energy_the_blocks_are() -> None:
    whole = model()
    summary = summarize(whole, select(whole, by_name("2", "3")))
    assert (summary.names, summary.parameters, summary.energy) == (("2", "3"), 26, None)
    assert summary.share == 26 / 81
    assert summarize(whole, select(whole, by_name("2", "3")), ENERGIES).energy == 0.86
    with pytest.raises(UnknownBlock, match="energy of block '3' is not given"):
        summarize(whole, select(whole, by_name("2", "3")), {"2": 1.0})


def test_a_weight_shared_between_modules_is_refused_only_where_it_is_selected() -> None:
    tied = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4), nn.Linear(4, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(InfluenceError, match=r"block '0' shares a weight \(0\.weight, 1\.weight\)"):
        select(tied)
    assert names(select(tied, last(1))) == ["2"]


def test_a_module_in_two_places_shares_nothing_with_another() -> None:
    layer = nn.Linear(3, 3)
    assert names(select(nn.Sequential(layer, nn.ReLU(), layer))) == ["0"]


def test_features_are_the_layers_of_a_transformer_that_are_called() -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(7, 8), "encoder": nn.TransformerEncoderLayer(8, 2, 16), "head": nn.Linear(8, 3)}
    )
    assert [block.name for block in select(model, features)] == ["encoder.linear1", "encoder.linear2", "head"]


def test_where_no_block_has_gradient_energy_its_share_is_not_known() -> None:
    blocks = available(model())
    assert summarize(model(), blocks, {block.name: 0.0 for block in blocks}).energy is None


def test_blocks_of_frozen_parameters_are_not_trained() -> None:
    net = model()
    net[1].requires_grad_(False)
    net[3].weight.requires_grad_(False)  # its bias is trained
    assert names(select(net, trained)) == ["0", "2", "3", "4"]
    with pytest.raises(UnknownBlock, match="none of 1 is trained"):
        select(net, by_name("1"), trained)
