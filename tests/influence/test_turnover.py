"""Turn-over dropout."""

import pytest
import torch
from torch import Tensor, nn

from influence import InfluenceError, UnknownBlock, turnover
from influence.turnover import TurnOver, kept_units, turn_over_influence, turn_over_self_influence
from tests.influence.cases import TASK, Batch, conv_net, drawn, images, loss, mlp, over_positions, points, split

KEYS = torch.tensor([0, 1, -7, 2**62, -(2**63), 2**63 - 1, 12345])


def attention() -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(5, 1, 6, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(20, 3)).double().eval()


MODELS = {
    "mlp": (mlp(), points(7), ["0", "2"]),
    "positions": (over_positions(), points(7, positions=4), ["first"]),
    "conv": (conv_net(), images(7), ["0", "2"]),
    "attention": (attention(), points(7, positions=4), ["0.linear1"]),
}
no_fallback = pytest.mark.filterwarnings("error:There is a performance drop")  # of what cannot be batched
every_model = pytest.mark.parametrize("case", MODELS)


@torch.no_grad()
def masked(case: str, rows: Tensor, seed: int = 0) -> Tensor:
    """Losses of these points of a case, each with its own mask."""
    model, (x, y), layers = MODELS[case]
    with TurnOver(model, layers, seed).own(KEYS[rows]):
        return loss(model, (x[rows], y[rows]))


def test_masks_are_of_the_key_the_layers_name_and_the_seed_alone() -> None:
    whole = kept_units(KEYS, "first", 64, seed=3)  # [B, units]
    assert whole.shape == (7, 64)
    for rows in (torch.tensor([6, 2, 0]), torch.tensor([3])):
        assert kept_units(KEYS[rows], "first", 64, seed=3).equal(whole[rows])
    for other in (
        kept_units(KEYS, "second", 64, seed=3),
        kept_units(KEYS, "first", 64, seed=4),
        kept_units(KEYS + 1, "first", 64, seed=3),
    ):
        assert (other != whole).float().mean() > 0.4  # of 448 units half; 4 standard errors below


@every_model
def test_a_points_loss_does_not_depend_on_the_rest_of_its_batch(case: str) -> None:
    whole = masked(case, torch.arange(7))
    order = torch.tensor([4, 0, 6, 1, 5, 2, 3])
    torch.testing.assert_close(masked(case, order), whole[order], rtol=1e-12, atol=0)  # rounding of products
    ones = torch.cat([masked(case, rows) for rows in torch.arange(7).split(1)])
    torch.testing.assert_close(ones, whole, rtol=1e-12, atol=0)
    assert not masked(case, torch.arange(7), seed=1).allclose(whole)


@every_model
@torch.no_grad()
def test_own_and_flipped_units_are_all_units_doubled(case: str) -> None:
    model, batch, layers = MODELS[case]
    layer = model.get_submodule(layers[0])
    both = TurnOver(model, layers[:1], 0)
    plain = layer(batch[0])
    with both.own(KEYS):
        own = layer(batch[0])
    with both.flipped(KEYS):
        flipped = layer(batch[0])
    torch.testing.assert_close(own + flipped, 2 * plain, rtol=0, atol=0)
    units = 1 if case == "conv" else -1
    off = (own == 0).movedim(units, 1).flatten(2) if own.ndim > 2 else (own == 0)[..., None]  # [B, units, places]
    assert off.all(2).logical_or((~off).all(2)).all()  # a unit is off at all its places or at none


@torch.no_grad()
def test_the_mean_over_masks_is_the_output_without_them() -> None:
    layer, draws = nn.Linear(3, 5).double(), 20_000
    model, x = nn.Sequential(layer), torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    with TurnOver(model, ["0"], 0).own(torch.arange(draws)):
        mean = model(x.expand(draws, 3)).mean(0)
    plain = model(x)[0]
    assert ((mean - plain).abs() < 4 * plain.abs() / draws**0.5).all()  # a term is 0 or double: its deviation is plain


def test_a_point_does_not_move_what_its_flipped_mask_uses() -> None:
    model, batch, _ = MODELS["mlp"]
    with TurnOver(model, ["0"], 0).own(KEYS[:1]):
        value = loss(model, (batch[0][:1], batch[1][:1])).sum()
    into, out = torch.autograd.grad(value, [model[0].weight, model[2].weight])
    off = ~kept_units(KEYS[:1], "0", 6, 0)[0]
    assert off.any()
    assert into[off].eq(0).all()
    assert out[:, off].eq(0).all()
    assert into[~off].ne(0).any()


@torch.no_grad()
def test_influence_is_the_loss_with_the_flipped_mask_less_that_with_the_own() -> None:
    model, queries, _ = MODELS["mlp"]
    on = kept_units(KEYS, "0", 6, 5).double()  # [n, units]
    hidden = model[0](queries[0])  # [m, units]
    seen, unseen = (
        torch.stack([loss(model[1:], (2 * mask * hidden, queries[1])) for mask in masks]) for masks in (on, 1 - on)
    )
    found = turn_over_influence(model, TASK, ["0"], KEYS, split(queries, 3), 5)
    torch.testing.assert_close(found, unseen - seen, rtol=1e-12, atol=1e-12)
    assert found.abs().max() > 0.1


@no_fallback
@every_model
def test_pieces_change_nothing_and_self_influence_is_the_diagonal(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, layers = MODELS[case]
    whole = turn_over_influence(model, TASK, layers, KEYS, [batch], 0)
    monkeypatch.setattr(turnover, "ROWS", 20)
    pieces = turn_over_influence(model, TASK, layers, KEYS, split(batch, 5), 0)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-14)
    own = turn_over_self_influence(model, TASK, layers, KEYS, split(batch, 2), 0)
    torch.testing.assert_close(own, whole.diagonal(), rtol=1e-12, atol=1e-14)


def test_a_model_that_does_not_read_the_masked_layer_has_no_influence() -> None:
    model = mlp()
    nn.init.zeros_(model[4].weight)
    assert turn_over_influence(model, TASK, ["0", "2"], KEYS, [points(9)], 0).eq(0).all()


def memorizing(seed: int) -> tuple[nn.Sequential, Batch, Tensor]:
    """A network that has fitted random labels, each point with its own mask; the points and their keys."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4)).double()
    batch, keys = drawn(60, (10,), 4, seed=1), torch.arange(60) * 7 - 100
    masks, solver = TurnOver(model, ["0"], seed), torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        solver.zero_grad()
        with masks.own(keys):
            loss(model, batch).mean().backward()
        solver.step()
    return model.eval(), batch, keys


def test_a_point_memorized_by_its_own_half_has_positive_self_influence() -> None:
    model, batch, keys = memorizing(2)
    found = turn_over_self_influence(model, TASK, ["0"], keys, [batch], 2)
    assert found.mean() > 5 * found.std() / len(found) ** 0.5
    strangers = turn_over_self_influence(model, TASK, ["0"], keys + 1, [batch], 2)  # masks that nobody trained
    assert strangers.mean().abs() < 4 * strangers.std() / len(found) ** 0.5


def test_hooks_are_gone_on_exit_also_after_an_error() -> None:
    model = mlp()
    with pytest.raises(ZeroDivisionError), TurnOver(model, ["0", "2"], 0).own(KEYS):
        raise ZeroDivisionError
    with pytest.raises(InfluenceError, match="3 rows, given 7 keys"), TurnOver(model, ["0"], 0).own(KEYS):
        model(points(3)[0])
    assert not any(module._forward_hooks for module in model.modules())


def test_an_unknown_layer_is_one_clear_line() -> None:
    with pytest.raises(UnknownBlock, match=r"^turn-over layer 'encoder': the model has 0, 1, 2, 3, 4$"):
        TurnOver(mlp(), ["0", "encoder"], 0)


def test_without_layers_nothing_is_masked() -> None:
    model, batch, _ = MODELS["mlp"]
    plain = loss(model, batch)
    with TurnOver(model, [], 0).own(KEYS):
        assert loss(model, batch).equal(plain)
    assert turn_over_influence(model, TASK, [], KEYS, [batch], 0).eq(0).all()


def test_a_layer_without_units_in_a_known_place_is_refused() -> None:
    with pytest.raises(InfluenceError, match=r"'1' returned shape \[7, 3, 5, 5\]: name a convolution"):
        turn_over_influence(conv_net(), TASK, ["1"], KEYS, [images(7)], 0)


def test_a_layer_that_is_not_called_is_refused() -> None:
    model = mlp()
    with pytest.raises(InfluenceError, match="'2' is not called"), TurnOver(model, ["0", "2"], 0).own(KEYS):
        model[:2](points(7)[0])
