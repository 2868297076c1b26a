"""Influence by position: it adds up to the point's influence, and each part is that of its position's own weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn.functional import cross_entropy

from influence import (
    EKFAC,
    Damping,
    Gradients,
    Reader,
    available,
    direction,
    each,
    fit,
    position_influence,
    summed,
)
from influence.scores import PairScorer
from tests.influence.cases import TASK, Batch

VOCABULARY, D, T, N, M = 11, 4, 5, 30, 7
PADDING = 0


class Text(nn.Module):
    """Words, a layer at each position, a normalisation of two columns, a mean over positions, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, D, padding_idx=PADDING)
        self.layer, self.norm, self.head = nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        held = (tokens != PADDING).unsqueeze(-1)
        return self.head((self.norm(self.layer(self.words(tokens)).tanh()) * held).sum(1) / held.sum(1))


def texts(count: int, seed: int, length: int = T) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (count, length), generator=generator)
    return tokens, torch.randint(3, (count,), generator=generator)


def text() -> Text:
    torch.manual_seed(0)
    return Text().double().eval()


def attributed(model: Text, train: Batch) -> tuple[Reader[Batch], Gradients, Tensor]:
    """An open reader, the direction, and the influence of every train point."""
    blocks = available(model)
    reader = Reader(model, TASK, blocks).__enter__()
    curvature = EKFAC(blocks)
    keys = torch.arange(len(train[1]))
    fit([curvature], lambda: iter([(reader.train(train, 0, keys), torch.ones(len(keys)))]))
    curvature.finish(Damping("absolute", 1e-2))
    asked = texts(M, 2, train[0].shape[1])
    queries = each([reader.queries(asked)], M)
    pairs = PairScorer(curvature, queries, len(keys), own=False).score(reader.losses(train).losses)
    gradient = summed([(reader.losses(asked).losses, torch.ones(M))])
    return reader, direction(curvature, gradient, M, len(keys)), pairs.influence.mean(1)


def by_hand(model: Text, along: Gradients, tokens: Tensor, label: Tensor) -> Tensor:
    """By position, the derivative of the loss in words and a layer of its own there, times the direction."""

    def loss(words: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = words[torch.arange(len(tokens)), tokens]  # [T, D], each from the position's own table
        h = torch.einsum("toi,ti->to", weight, rows) + bias
        pooled = model.norm(h.tanh()).mean(0)
        return cross_entropy(model.head(pooled), label)

    length = len(tokens)
    own = [
        one.detach().expand(length, *one.shape) for one in (model.words.weight, model.layer.weight, model.layer.bias)
    ]
    words, weight, bias = grad(loss, (0, 1, 2))(*own)
    layer = torch.cat([weight, bias[:, :, None]], 2)
    return (words.mT * along["words"]).sum((1, 2)) + (layer * along["layer"]).sum((1, 2))


def test_positions_and_rest_add_up_to_the_influence_on_the_mean_of_the_queries() -> None:
    model, train = text(), texts(N, 1)
    train[0][:10, 3:] = PADDING
    reader, along, influence = attributed(model, train)
    found = position_influence(reader.losses(train).losses, along, reader.blocks, T)
    torch.testing.assert_close(found.positions.sum(1) + found.rest, influence, rtol=1e-10, atol=1e-14)
    assert (found.positions[:10, 3:].abs() < 1e-14).all(), "padding carries nothing"
    assert (found.rest.abs() > 1e-6).any()


@pytest.mark.parametrize("length", [T, 2])
def test_a_positions_part_is_that_of_words_and_layer_of_its_own(length: int) -> None:
    """At two positions the two columns of the normalisation are no positions, though as many."""
    model, train = text(), texts(N, 1, length)
    reader, along, _ = attributed(model, train)
    found = position_influence(reader.losses(train).losses, along, reader.blocks, length)
    for point in range(4):
        expected = by_hand(model, along, train[0][point], train[1][point])
        torch.testing.assert_close(found.positions[point], expected, rtol=1e-9, atol=1e-14)


def test_without_a_block_of_as_many_positions_all_is_rest() -> None:
    model, train = text(), texts(N, 1)
    reader, along, influence = attributed(model, train)
    found = position_influence(reader.losses(train).losses, along, reader.blocks, T + 1)
    assert not found.positions.any()
    torch.testing.assert_close(found.rest, influence, rtol=1e-10, atol=1e-14)
    assert (found + found).rest.equal(2 * found.rest)
