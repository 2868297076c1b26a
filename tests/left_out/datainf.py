"""DataInf: the inverse of a mean taken for the mean of inverses (Kwon et al. 2024, arXiv 2310.00902).

    H^-1 = [(1/n) sum_i G_i' G_i + damping I]^-1  ~  (1/n) sum_i [G_i' G_i + damping I]^-1
         = (1 / damping) [I - (1/n) sum_i G_i' (G_i G_i' + damping I)^-1 G_i]

block by block, with the R Fisher roots of point i in rows of G_i; for one root a point, the paper's formula (Sherman
and Morrison). Exact for one point. With many, each is taken as if its own curvature were all there is, n times what it
adds to the mean, and the result is close to inner products of gradients.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from influence.blocks import Block
from influence.curvature.base import AllReduce, Damping, Diagnostics, Own, Preconditioned, Solved
from influence.curvature.joint import runs
from influence.curvature.own import own_by_solving
from influence.curvature.products import combine, factor_product, largest_eigenvalue, project
from influence.curvature.roots import OnRoots
from influence.errors import InfluenceError
from influence.factored import Factor, Factors, Gradients, materialise
from influence.sharding import WHOLE, Share


class DataInf(OnRoots):
    """The mean of the points' damped inverses, of each block by itself.

    Args:
        blocks: the blocks.
        share: this rank's; every rank then holds the roots of all points.
    """

    def __init__(self, blocks: Sequence[Block], share: Share = WHOLE) -> None:
        super().__init__(blocks, share)
        self._roots: Factors = {}
        self._grams: Mapping[str, Tensor] = {}  # G_i G_i' of each block, [n, R, R]
        self._damping: Mapping[str, float] = {}
        self._inverses: Mapping[str, Tensor] = {}  # (G_i G_i' + damping I)^-1

    def reduce(self, all_reduce: AllReduce) -> None:
        """End the pass: gather the roots of all ranks, and multiply those of each point with each other."""
        self._roots = self._kept.gather(all_reduce)
        self._grams = {name: _grams(factor) for name, factor in self._roots.items()}

    def finish(self, damping: Damping) -> None:
        """Fix the damping of every block; again for another one."""
        if not self._roots:
            raise InfluenceError("the Fisher roots of DataInf have not been reduced")
        self._damping, self._inverses = {}, {}
        for name, grams in self._grams.items():
            n, r, _ = grams.shape
            trace = float(grams.diagonal(dim1=1, dim2=2).sum()) / n
            self._damping[name] = damping.resolve(trace / self._roots[name].elements)
            self._inverses[name] = torch.linalg.inv(grams + self._damping[name] * torch.eye(r, dtype=grams.dtype))

    def solve(self, gradients: Gradients) -> Gradients:
        """Damped inverse times k gradients, in their dtype."""
        if not self._inverses:
            raise InfluenceError("DataInf has no damping yet: call finish() after its pass")
        return {name: self._solve(name, v) for name, v in zip(self.blocks, self._joint.parts(gradients))}

    def own(self, factors: Factors, *, step: bool = False) -> Own:
        """The own terms of B points; as costly as solving for B queries."""
        return own_by_solving(self, self._joint, factors, step=step)

    def against(self, gradients: Gradients, *, own: bool = False, step: bool = False) -> Preconditioned:
        """Solve the gradients of k queries and hold them."""
        return Solved(self, gradients, own=own, step=step)

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """By block; the residual is that of the block's Gauss-Newton matrix itself.

        The effective dimension is the mean of the points' own, which is at most that of the matrix. The smallest
        eigenvalue is taken to be the damping, so the condition is an upper bound (`dual`).
        """
        probe = self._joint.split(self._joint.probe())
        return {name: self._diagnose(name, probe[name], one) for name, one in self.solve(probe).items()}

    def _solve(self, name: str, v: Tensor) -> Tensor:
        roots = self._roots[name]
        inner = project(roots, v) @ self._inverses[name].to(v)  # [n, k, R]
        return (v - combine(roots, inner) / len(roots)) / self._damping[name]

    def _diagnose(self, name: str, probe: Tensor, solved: Tensor) -> Diagnostics:
        roots, damping = self._roots[name], self._damping[name]
        product = factor_product({name: roots}, damping)
        back = product({name: solved})[name]
        shape, size = probe.shape[1:], roots.elements
        largest = largest_eigenvalue(lambda x: product({name: x.unflatten(1, shape)})[name].flatten(1), size)
        inverses = self._inverses[name]
        trace = float(inverses.diagonal(dim1=1, dim2=2).sum())
        return Diagnostics(
            residual=float((back - probe).norm() / probe.norm()),
            effective_dimension=inverses.shape[1] - damping * trace / len(inverses),
            condition=largest / damping,
            damping=damping,
        )


def _grams(roots: Factor) -> Tensor:
    """Inner products of the roots of each point, [n, R, R], float64."""
    if roots.a.shape[1] == 1:
        g, a = roots.g[:, :, 0].transpose(0, 1).double(), roots.a[:, 0].double()  # [n, R, o], [n, i]
        return g @ g.mT * a.square().sum(1)[:, None, None]
    found = []
    for run in runs(len(roots), len(roots.g) * roots.elements):
        full = materialise(roots[run]).flatten(2).transpose(0, 1).double()  # [b, R, o i]
        found.append(full @ full.mT)
    return torch.cat(found)
