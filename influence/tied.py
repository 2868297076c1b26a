"""A table of vectors that is also the weight of a linear layer, as in most language models: one block [V, d].

Its gradient is the sum of what both calls say. That of the layer is sum_t g_t x_t', with a row for every output; that
of the table, written the same way, is sum_t e_t g_t', with rows for the tokens alone. Inputs of the one are gradients
of the other, so the sum has no factors: it is formed at once, with the identity for its input basis.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from influence.calls import Call, Capture, identity, sequence, widen
from influence.layouts import tokens_of


@dataclass(frozen=True)
class TiedLayout:
    """Of the calls of the table."""

    module: nn.Embedding
    linear: nn.Linear
    free = True

    @property
    def shape(self) -> tuple[int, int]:
        """Vocabulary and dimension: the shape of both weights."""
        return self.module.num_embeddings, self.module.embedding_dim

    def read(self, call: Call) -> Capture:
        """Columns of the gradient are positions."""
        tokens, (rows, width) = tokens_of(call, self.module), self.shape

        def columns(gradient: Tensor) -> Tensor:
            g = sequence(gradient) * (tokens >= 0)[..., None]  # [B, T, d]
            places = tokens.clamp(min=0)[:, None].expand(-1, width, -1)  # [B, d, T]
            return g.new_zeros(len(g), width, rows).scatter_add_(2, places, g.mT)

        return Capture(identity(widen(call.output), len(tokens), width), columns)


@dataclass(frozen=True)
class OutputLayout(TiedLayout):
    """Of the calls of the linear layer."""

    def read(self, call: Call) -> Capture:
        """Columns of the gradient are positions."""
        x = sequence(call.input(2)).clone()  # [B, T, d]
        return Capture(identity(x, len(x), self.shape[1]), lambda gradient: x.mT @ sequence(gradient))
