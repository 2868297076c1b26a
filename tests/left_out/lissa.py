"""LiSSA: the inverse as a truncated Neumann series (Agarwal et al. 2017; Koh and Liang 2017, arXiv 1703.04730).

    x <- v + x - (H + damping) x / scale,    H^-1 v = x / scale

After j steps the residual is (I - (H + damping) / scale)^(j + 1) v: a direction of curvature h is solved for after some
scale / (h + damping) steps. Every product takes all points, so nothing is random, and the scale is just above the
largest eigenvalue. Conjugate gradients need the square root of as many products (`iterative`); this is a yardstick.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from influence.blocks import Block
from influence.curvature.base import AllReduce, Damping, Diagnostics, Own, Preconditioned, Solved
from influence.curvature.iterative import PROBES, Solution
from influence.curvature.joint import Joint
from influence.curvature.own import own_by_solving
from influence.curvature.products import Product, factor_product, largest_eigenvalue
from influence.curvature.roots import OnRoots, squared_sizes
from influence.errors import InfluenceError
from influence.factored import Factors, Gradients
from influence.sharding import WHOLE, Share

ABOVE = 1.01  # times the largest eigenvalue: subspace iteration finds a little less than it


def lissa(product: Product, gradients: Gradients, scale: float, iterations: int) -> Solution:
    """Approximate H^-1 v for k right-hand sides.

    Args:
        product: x -> H x, damped, on [k, ...] of each block.
        gradients: the right-hand sides, [k, ...] of each block; their dtype is that of the computation.
        scale: at least the largest eigenvalue of H.
        iterations: of each right-hand side.

    Raises:
        InfluenceError: the series has diverged.
    """
    joint = Joint({name: tuple(one.shape[1:]) for name, one in gradients.items()})

    def times(x: Tensor) -> Tensor:
        return joint.join(product(joint.split(x)), x.dtype)

    v = joint.join(gradients, next(iter(gradients.values())).dtype)
    x = v.clone()
    for _ in range(iterations):
        x.sub_(times(x), alpha=1 / scale).add_(v)
    x /= scale
    sizes = v.norm(dim=1)
    residuals = ((times(x) - v).norm(dim=1) / sizes.where(sizes > 0, 1.0)).double()
    if _diverged(residuals):
        raise InfluenceError(
            f"LiSSA diverged: residual {float(residuals.max()):.1e} after {iterations} iterations, scale {scale:g}; "
            "give a scale above the largest eigenvalue of the damped matrix"
        )
    return Solution(joint.split(x), torch.full((len(v),), iterations), residuals)


def _diverged(residuals: Tensor) -> bool:
    """Whether any is above that of x = 0, or not a number."""
    return not bool((residuals <= 1).all())


class LiSSA(OnRoots):
    """Gauss-Newton on the blocks together, cross terms included, solved by LiSSA on kept Fisher roots.

    Args:
        blocks: the blocks.
        iterations: of every right-hand side.
        share: this rank's; every rank then holds the roots of all points.
    """

    def __init__(self, blocks: Sequence[Block], iterations: int = 1000, share: Share = WHOLE) -> None:
        if iterations < 1:
            raise InfluenceError(f"{iterations} iterations of LiSSA: give at least 1")
        self.damping = 0.0
        super().__init__(blocks, share)
        self._iterations = iterations
        self._roots: Factors = {}
        self._mean_eigenvalue, self._largest = 0.0, 0.0

    def reduce(self, all_reduce: AllReduce) -> None:
        """End the pass: gather the roots of all ranks, and find the largest eigenvalue."""
        joint, self._roots = self._joint, self._kept.gather(all_reduce)
        sizes = squared_sizes(self._roots)  # [n, R]
        self._mean_eigenvalue = float(sizes.sum(dtype=torch.float64)) / len(sizes) / joint.parameters
        product = factor_product(self._roots, 0.0)
        self._largest = largest_eigenvalue(lambda x: joint.join(product(joint.split(x))), joint.parameters)

    def finish(self, damping: Damping) -> None:
        """Fix the damping; again for another one."""
        if not self._roots:
            raise InfluenceError("the Fisher roots of LiSSA have not been reduced")
        self.damping = damping.resolve(self._mean_eigenvalue)

    def solution(self, gradients: Gradients) -> Solution:
        """Damped inverse times k gradients, with residuals."""
        if self.damping <= 0:
            raise InfluenceError("LiSSA has no damping yet: call finish() after its pass")
        given = dict(zip(self.blocks, self._joint.parts(gradients)))
        scale = ABOVE * (self._largest + self.damping)
        return lissa(factor_product(self._roots, self.damping), given, scale, self._iterations)

    def solve(self, gradients: Gradients) -> Gradients:
        """Damped inverse times k gradients, in their dtype."""
        return self.solution(gradients).solved

    def own(self, factors: Factors, *, step: bool = False) -> Own:
        """The own terms of B points; as costly as solving for B queries."""
        return own_by_solving(self, self._joint, factors, step=step)

    def against(self, gradients: Gradients, *, own: bool = False, step: bool = False) -> Preconditioned:
        """Solve the gradients of k queries and hold them."""
        return Solved(self, gradients, own=own, step=step)

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """Of the blocks together; the residual is the largest of 16 probes.

        They also estimate the effective dimension, as for conjugate gradients (`iterative`); the series falls short of
        the inverse, so it is too large by what has not converged. The condition is an upper bound (`dual`).
        """
        joint, probe = self._joint, self._joint.probe(PROBES)
        found = self.solution(joint.split(probe))
        inverse = float((joint.join(found.solved) * probe).sum()) / PROBES
        return {
            joint.name: Diagnostics(
                residual=float(found.residuals.max()),
                effective_dimension=joint.parameters - self.damping * inverse,
                condition=self._largest / self.damping + 1,
                damping=self.damping,
            )
        }
