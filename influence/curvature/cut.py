"""An eigenbasis cut at a share of the trace, for own terms of single positions at a fraction of the cost.

The eigenvectors that are not kept on a side become one direction, which holds what energy of a factor the kept ones
leave, |a|^2 - sum_kept (Qa' a)^2, under the energy-weighted mean of the weights that it replaces. Only quadratic terms
can be had from it: against queries a cut basis would lose the signs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from influence.factored import Factor
from influence.matmul import product

TINY = 1e-300


@dataclass(frozen=True)
class Cut:
    """Kept eigenvectors of both sides.

    Attributes:
        inputs: [i, ki], float64.
        outputs: [o, ko], float64.
        weights: of kept pairs, with one row and one column more for the rest, [2, ko + 1, ki + 1].
    """

    inputs: Tensor
    outputs: Tensor
    weights: Tensor

    @classmethod
    def at(cls, share: float, inputs: Tensor, outputs: Tensor, eigenvalues: Tensor, weights: Tensor) -> "Cut":
        """Keep on each side the fewest eigenvectors that hold a share of the trace.

        Args:
            share: in (0, 1).
            inputs: Qa, [i, i].
            outputs: Qs, [o, o].
            eigenvalues: Lambda >= 0, [o, i].
            weights: functions of Lambda to be summed over, [2, o, i].
        """
        kept_in, kept_out = _kept(eigenvalues.sum(0), share), _kept(eigenvalues.sum(1), share)
        columns, rows = _groups(kept_in, len(inputs)), _groups(kept_out, len(outputs))  # [i, ki + 1], [o, ko + 1]
        energy = eigenvalues + TINY  # where there is none, the plain mean
        means = (rows.T @ (energy * weights) @ columns) / (rows.T @ energy @ columns).clamp(min=TINY)
        return cls(inputs[:, kept_in], outputs[:, kept_out], means)

    def single(self) -> "Cut":
        """The same in float32."""
        return Cut(self.inputs.float(), self.outputs.float(), self.weights.float())

    def energies(self, factor: Factor) -> tuple[Tensor, Tensor]:
        """Squares of the rotated factors of single positions with the rest at the end, [B, ki + 1] and [B, ko + 1]."""
        return _energies(factor.a[:, 0], self.inputs), _energies(factor.g[:, 0], self.outputs)


def _kept(energies: Tensor, share: float) -> Tensor:
    order = energies.argsort(descending=True)
    held = energies[order].cumsum(0) / energies.sum()
    return order[: int((held < share).sum()) + 1]


def _groups(kept: Tensor, size: int) -> Tensor:
    members = torch.zeros(size, len(kept) + 1, dtype=torch.float64, device=kept.device)
    members[:, -1] = 1
    members[kept] = 0
    members[kept, torch.arange(len(kept), device=kept.device)] = 1
    return members


def _energies(x: Tensor, basis: Tensor) -> Tensor:
    kept = product(x, basis).square()  # [B, k]
    rest = (x.square().sum(1) - kept.sum(1)).clamp(min=0)  # rounding only
    return torch.cat([kept, rest[:, None]], 1)
