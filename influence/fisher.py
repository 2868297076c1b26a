"""Roots of the Gauss-Newton matrix of the cross-entropy at the logits: cotangents whose outer products add up to it.

For predicted probabilities p, the Hessian of the loss in the logits is diag(p) - p p' = E_y (e_y - p)(e_y - p)', y ~ p.
Pulled back to the blocks, the R roots of a point are R gradients whose outer products are its Gauss-Newton matrix.

| kind | roots of a point | R |
|---|---|---|
| exact | sqrt(p_y) (e_y - p) for every label y | C |
| sampled | (e_y - p) / sqrt(R) for R labels y ~ p: for large vocabularies | draws |
| empirical | p - e_y for the given label: not a Gauss-Newton matrix, but free with the loss gradient | 1 |

Of a text, which has a label at each of T positions, see `tokens`.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from influence.errors import InfluenceError

FisherKind = Literal["exact", "sampled", "empirical"]


@dataclass(frozen=True)
class Fisher:
    """Which roots to take.

    Attributes:
        kind: see the table of this module.
        draws: labels per point, for `sampled`.
        seed: of the labels, for `sampled`; with a point's key it fixes its labels on any rank, in any batch.
    """

    kind: FisherKind = "exact"
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FisherKind):
            raise InfluenceError(f"Fisher kind {self.kind!r}: use one of {', '.join(get_args(FisherKind))}")
        if self.draws < 1 or (self.draws > 1 and self.kind != "sampled"):
            raise InfluenceError(f"{self.draws} draws: give at least 1, and more only with kind 'sampled'")

    def roots(self, probabilities: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        """The roots of B points.

        Args:
            probabilities: p, [B, C].
            labels: given labels, [B], int64; read by `empirical` alone.
            keys: one integer per point, [B], int64; read by `sampled` alone.

        Returns:
            [R, B, C].
        """
        p = probabilities
        if self.kind == "empirical":
            return residuals(p, labels)[None]
        if self.kind == "exact":
            identity = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
            return p.T.sqrt()[:, :, None] * (identity[:, None] - p)  # [C, B, C]
        y = sampled(p, uniforms(keys.to(p.device), self.draws, self.seed))  # [R, B]
        scale = 1 / sqrt(self.draws)
        roots = (-scale * p).repeat(self.draws, 1, 1)  # [R, B, C]
        return roots.scatter_add_(2, y[:, :, None], torch.full_like(roots[..., :1], scale))


def residuals(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the cross-entropy in the logits, p - e_y, [B, C]."""
    return probabilities - one_hot(labels, probabilities.shape[1]).to(probabilities)


def margin_residuals(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the gradient of the margin in the logits, [B, C]; times 1 - p_y it is that of the loss."""
    given = one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(given, -torch.inf).softmax(1) - given.to(logits)


def uniforms(keys: Tensor, draws: int, seed: int) -> Tensor:
    """Numbers in [0, 1) that depend on a point's key, the draw and the seed alone, [draws, B], float64.

    Steele, Lea & Flood 2014, SplitMix64: a counter through a 64-bit finaliser. Integer tensors wrap around, as it asks.
    """
    draw = torch.arange(draws, device=keys.device)[:, None]
    counter = keys[None] * 0x5851F42D4C957F2D + draw + torch.tensor(seed) * 0x14057B7EF767814F
    z = _finalise(_finalise(counter))
    return _shift(z, 11).double() / 2**53


def sampled(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Labels [R, B] of probabilities [B, C], by inversion of numbers in [0, 1), [R, B]."""
    sums = probabilities.double().cumsum(1)  # ends near 1, by rounding
    return torch.searchsorted(sums, (numbers * sums[:, -1]).T.contiguous(), right=True).T


def _finalise(z: Tensor) -> Tensor:
    z = z + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64)
