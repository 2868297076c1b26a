"""Exact damped Gauss-Newton in the dual: for few points and any number of parameters.

With the N Fisher roots of all points as rows of A [N, p], divided by sqrt(n), H = A' A + damping I, and

    H^-1 V = [V - A' (K + damping I)^-1 A V] / damping,    K = A A'  [N, N]

K is a sum over blocks, for blocks of a single position (S S') o (a a') elementwise: A is never formed. Float64.

Few roots are large, above all of a fitted model. Without the smallest, which together hold a share `cut` of the
trace, N is small and H changes by at most that share of its trace. Conjugate gradients undo the change in a few
iterations if they are preconditioned by it (`iterative`). Fashion-MNIST, 784-64-32-10, 1,000 points, damping .001:
cuts of .0003, .001, .01 leave 4,110, 3,252, 1,749 of 10,000 roots and a rank correlation of pairs of .999, .996, .951.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from influence.blocks import Block
from influence.curvature.base import AllReduce, Damping, Diagnostics, Own, Preconditioned, Snapshot, Solved
from influence.curvature.gram import Rows, cross, gram
from influence.curvature.joint import add_up, runs
from influence.curvature.products import combine, largest_eigenvalue, sum_of_blocks
from influence.curvature.roots import RestorableOnRoots, squared_sizes
from influence.errors import InfluenceError
from influence.factored import Factor, Factors, Gradients, squared_norms, total
from influence.sharding import WHOLE, Share

LARGEST = 12_000  # rows: two matrices of 1.2 GB, and some 20 s for one Cholesky on one core


class DualGaussNewton(RestorableOnRoots):
    """Damped Gauss-Newton on the blocks together, cross terms included.

    Args:
        blocks: the blocks.
        share: this rank's; every rank then holds the roots of all points.
        cut: share of the trace that is left out with the smallest roots, in [0, 1); 0 is exact.
        rows: at most so many roots, the largest; None: any number, refused above 12,000. For a preconditioner.
    """

    def __init__(
        self, blocks: Sequence[Block], share: Share = WHOLE, cut: float = 0.0, rows: int | None = None
    ) -> None:
        if not 0 <= cut < 1:
            raise InfluenceError(f"cut = {cut}: give a share of the trace, at least 0 and below 1")
        self.damping = 0.0
        self.gram = torch.empty(0, dtype=torch.float64)  # K, [N, N]
        super().__init__(blocks, share)
        self._cut, self._most = cut, rows
        self._points = 0
        self._roots: Mapping[str, Factor] = {}  # of the points that have a row
        self._present = torch.empty(0, dtype=torch.bool)  # which of them are rows, [points, R]
        self._rows: Mapping[str, Rows] = {}
        self._cholesky = torch.empty(0, dtype=torch.float64)

    def reduce(self, all_reduce: AllReduce) -> None:
        """End the pass: gather the roots of all ranks, and multiply them with each other."""
        gathered = self._kept.gather(all_reduce)
        roots = {name: Factor(factor.a.double(), factor.g.double()) for name, factor in gathered.items()}
        present = _largest(squared_sizes(roots), self._cut, self._most)
        _refuse_many(int(present.sum()))
        some = present.any(1)
        self._points = len(some)
        self._hold({name: factor[some] for name, factor in roots.items()}, present[some])
        self.gram = gram(list(self._rows.values())).div_(self._points)

    def snapshot(self) -> Snapshot:
        """The roots that are rows, and their products with each other."""
        points = torch.tensor(self._points)
        return self._snapshot(self._roots, {"gram": self.gram, "present": self._present, "points": points})

    def finish(self, damping: Damping) -> None:
        """Fix the damping and factorise; again for another damping."""
        if not self._roots:
            raise InfluenceError("the Fisher roots of the dual have not been reduced")
        self.damping = damping.resolve(float(self.gram.trace()) / self._joint.parameters)
        self._cholesky = torch.empty(0, dtype=torch.float64)  # the former one first: two matrices are held, not three
        damped = self.gram.clone()
        damped.diagonal().add_(self.damping)
        self._cholesky = torch.linalg.cholesky(damped, out=damped)

    def solve(self, gradients: Gradients) -> Gradients:
        """Damped inverse times k gradients, in their dtype."""
        lower, v = self._factor(), self._joint.split(self._joint.join(gradients))
        inner = self._transposed(torch.cholesky_solve(self._times(v), lower))
        return {name: ((v[name] - one) / self.damping).to(gradients[name].dtype) for name, one in inner.items()}

    def own(self, factors: Factors, *, step: bool = False) -> Own:
        """The own terms of B points, from inner products with the roots alone."""
        blocks = dict(zip(self.blocks, self._joint.parts(factors)))
        width = max(len(self.gram), *(factor.elements for factor in blocks.values() if factor.a.shape[1] > 1), 1)
        return Own.join(
            [
                self._own({name: Factor(f.a[run].double(), f.g[run].double()) for name, f in blocks.items()}, step)
                for run in runs(len(next(iter(blocks.values()))), width)
            ]
        )

    def against(self, gradients: Gradients, *, own: bool = False, step: bool = False) -> Preconditioned:
        """Solve the gradients of k queries and hold them."""
        return Solved(self, gradients, own=own, step=step)

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """Of the blocks together, without the roots that were cut.

        The smallest eigenvalue is taken to be the damping: there are directions in which no logit, or no difference of
        two, changes. Where there are none, the condition is an upper bound.
        """
        lower, probe = self._factor(), self._joint.probe().to(self.gram)
        x = self.solve(self._joint.split(probe))
        back = self._joint.join(self._transposed(self._times(x))) + self.damping * self._joint.join(x)
        largest = largest_eigenvalue(lambda x: x @ self.gram, len(self.gram), self.gram.device)
        return {
            self._joint.name: Diagnostics(
                residual=float((back - probe).norm() / probe.norm()),
                effective_dimension=len(lower) - self.damping * _trace_of_inverse(lower),
                condition=(largest + self.damping) / self.damping,
                damping=self.damping,
            )
        }

    def _times(self, v: Gradients) -> Tensor:
        """A V, [N, k]."""
        inner = sum_of_blocks(self._roots, v).transpose(1, 2)  # [points, R, k]
        return inner[self._present] / math.sqrt(self._points)

    def _transposed(self, y: Tensor) -> Gradients:
        """A' y for y [N, k]."""
        spread = y.new_zeros(*self._present.shape, y.shape[1])  # [points, R, k]
        spread[self._present] = y / math.sqrt(self._points)
        return {name: combine(factor, spread.mT) for name, factor in self._roots.items()}

    def _own(self, factors: Factors, step: bool) -> Own:
        others = {name: Rows.single(factor) for name, factor in factors.items()}
        inner = add_up(cross(rows, others[name]) for name, rows in self._rows.items())  # [N, b]
        inner /= math.sqrt(self._points)  # A G'
        y = torch.cholesky_solve(inner, self._factor())  # [N, b]
        rest = total(factors, lambda _, factor: squared_norms(factor)) - (inner * y).sum(0)  # [b]
        # ||g - A'y||^2 = g'g - 2 (Ag)'y + y'Ky and (K + damping) y = Ag
        squared = (rest - self.damping * y.square().sum(0)) / self.damping**2 if step else None
        return Own(rest / self.damping, squared)

    def _take(self, roots: Factors, together: Mapping[str, Tensor]) -> None:
        self._points, self.gram = int(together["points"]), together["gram"]
        self._hold(roots, together["present"])

    def _hold(self, roots: Factors, present: Tensor) -> None:
        self._roots, self._present = roots, present
        self._rows = {name: Rows.of(factor, present) for name, factor in roots.items()}

    def _factor(self) -> Tensor:
        if self.damping <= 0:
            raise InfluenceError("the dual Gauss-Newton matrix has no damping yet: call finish() after its pass")
        return self._cholesky


def _largest(sizes: Tensor, cut: float, most: int | None) -> Tensor:
    """All roots but the smallest that together hold at most a share of the sum of `sizes`; those of size 0 never."""
    ascending = sizes.flatten().sort()
    dropped = int((ascending.values.cumsum(0) <= cut * sizes.sum()).sum())
    if most is not None:
        dropped = max(dropped, sizes.numel() - most)
    present = torch.ones(sizes.numel(), dtype=torch.bool, device=sizes.device)
    present[ascending.indices[:dropped]] = False
    return present.view_as(sizes)


def _refuse_many(rows: int) -> None:
    if not 1 <= rows <= LARGEST:
        raise InfluenceError(
            f"{rows} Fisher roots, the dual takes 1 to {LARGEST}; raise its cut, sample labels, or use PCG or EK-FAC"
        )


def _trace_of_inverse(lower: Tensor) -> float:
    """Of L L': the squared norm of L^-1, some columns at a time."""
    trace = 0.0
    for run in runs(len(lower), len(lower)):
        rest = lower[run.start :, run.start :]  # L^-1 has zeros above its diagonal
        columns = torch.eye(len(rest), run.stop - run.start, dtype=lower.dtype, device=lower.device)
        trace += float(torch.linalg.solve_triangular(rest, columns, upper=False).square().sum())
    return trace
