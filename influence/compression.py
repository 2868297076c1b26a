"""Gradient compression: what is read from the model becomes smaller before anything is kept or solved.

A compressor maps the factors of every block to factors of a smaller one, so any curvature takes them as they are; it is
made for `compressor.blocks`. Train points, queries and Fisher roots go through the same linear map C, and over its
seeds inner products are unbiased, E <Cg, Cg'> = <g, g'> (not those of `principal_logra`, which draws nothing).
`ratio` is that of all blocks together, but for the rounding of two sides (59 for 64 on 784-64-32-10): the largest are
brought to one size, and those below it stay whole, since a network's last layers are small and say most.

Damping is ADDED after projection, C F C' + damping I, never projected: an empty bucket leaves no singular matrix. The
trace of C F C' is on average that of F. So `absolute` and `horizon` damping keep their meaning while a block keeps well
more entries than the data determine directions; a mean eigenvalue is that of `ratio` times fewer, and as much larger.

    blocks = select(model)
    small = factor_mask(blocks, ratio=4)
    with Influence(model, task, EKFAC(small.blocks), blocks, compressor=small) as influence: ...

Vectors are for the exact curvatures; EK-FAC on them is the exact Gauss-Newton matrix of a block, at the cost of its
eigenvectors. Where factors are kept it costs what it costs on a small layer.

| compressor | keeps factors | source |
|---|---|---|
| coordinate_mask | no | dropout as compression: Zhang & Amiri 2025, arXiv 2509.15651 |
| factor_mask | yes | the same on layers; Random Mask of GraSS, arXiv 2505.18976 |
| gaussian | no | Johnson & Lindenstrauss 1984; small blocks only |
| sjlt | no | sparse Johnson-Lindenstrauss, one entry per column |
| masked_sjlt | no | GraSS: a factor mask that leaves four times too much, then SJLT |
| random_logra | yes | LoGra, random: Choe et al. 2024, arXiv 2405.13954 |
| principal_logra | yes | LoGra, PCA: eigenvectors of the covariances that K-FAC has found |
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from influence.blocks import Block, Blocks, Shapes, shapes_of
from influence.calls import Layout
from influence.curvature.base import Curvature
from influence.curvature.joint import add_up
from influence.curvature.kronecker import KFAC
from influence.devices import on
from influence.errors import InfluenceError
from influence.factored import Factors, Gradients
from influence.refusals import refuse_tables
from influence.sketches import Buckets, Chain, CoordinateMask, Dense, FactorMask, Sides, Sketch, SmallLayout, sides

BLOW_UP = 4  # times too much is left by the mask of mask + SJLT


@dataclass(frozen=True)
class Compressor:
    """One linear map of gradients, block by block.

    Attributes:
        of: the model's blocks.
        sketches: by their names.
    """

    of: Blocks
    sketches: Mapping[str, Sketch]

    @property
    def blocks(self) -> Blocks:
        """The same names with the smaller shapes: what a curvature is made for."""
        return tuple(replace(block, layout=self.sketches[block.name].layout) for block in self.of)

    def __call__(self, factors: Factors) -> Factors:
        """Compress per-point gradients of some of the blocks, g of shape [B, T, o] or [R, B, T, o]."""
        return {name: self.sketches[name](factor) for name, factor in factors.items()}

    def adjoint(self, gradients: Gradients) -> Gradients:
        """Back to the model's blocks, [k, o', i'] -> [k, o, i]: <Cg, y> = <g, C*y>."""
        return {name: self.sketches[name].adjoint(one) for name, one in gradients.items()}

    def refuse_others(self, blocks: Blocks) -> None:
        """Refuse blocks of other names or shapes than the compressor was made for."""
        known, given = shapes_of(self.of), shapes_of(blocks)
        if known != given:
            raise InfluenceError(f"the compressor was made for {_listed(known)}, and is to take {_listed(given)}")


@dataclass(frozen=True)
class InnerProducts:
    """Of uncompressed gradients, as the compressed ones tell.

    Attributes:
        values: unbiased, [B, k], float64.
        errors: standard errors of the values over seeds, [B, k]; infinite where one row or column is all there is.
    """

    values: Tensor
    errors: Tensor


def coordinate_mask(blocks: Blocks, ratio: float, seed: int = 0) -> Compressor:
    """Dropout: so many times fewer entries of the gradient, at random. Arguments as for all: the model's blocks."""
    return _drawn(blocks, ratio, seed, CoordinateMask.drawn)


def factor_mask(blocks: Blocks, ratio: float, seed: int = 0) -> Compressor:
    """Dropout on layers: each side of a block keeps a share of 1 / sqrt(ratio), at random."""
    return _drawn(blocks, ratio, seed, FactorMask.drawn)


def gaussian(blocks: Blocks, ratio: float, seed: int = 0) -> Compressor:
    """A dense Gaussian matrix for each block.

    Raises:
        InfluenceError: it has more than 67 million entries.
    """
    return _drawn(blocks, ratio, seed, Dense.drawn)


def sjlt(blocks: Blocks, ratio: float, seed: int = 0) -> Compressor:
    """A sparse projection: every entry is added to one of so many times fewer buckets, with a random sign."""
    return _drawn(blocks, ratio, seed, Buckets.drawn)


def masked_sjlt(blocks: Blocks, ratio: float, seed: int = 0) -> Compressor:
    """GraSS: a factor mask that leaves four times too much, then SJLT of that; for a ratio below 4, SJLT alone."""

    def chain(layout: Layout, ratio: float, generator: Generator) -> Sketch:
        last = min(BLOW_UP, ratio)
        mask = FactorMask.drawn(layout, ratio / last, generator)
        return Chain(mask, Buckets.drawn(mask.layout, last, generator))

    return _drawn(blocks, ratio, seed, chain)


def random_logra(blocks: Blocks, ratio: float, seed: int = 0) -> Compressor:
    """LoGra: a Gaussian matrix on each side of a block, both sides 1 / sqrt(ratio) as wide."""
    return _drawn(blocks, ratio, seed, Sides.drawn)


def principal_logra(blocks: Blocks, ratio: float, fitted: KFAC) -> Compressor:
    """LoGra on the leading eigenvectors of each side: nothing is drawn, and norms are at most the true ones.

    Args:
        blocks: the model's.
        ratio: how many times smaller.
        fitted: its passes over; on these blocks.
    """
    shared = _shared(blocks, ratio)
    refuse_other_blocks(fitted, blocks)
    fitted.refuse_unfitted()

    def leading(block: Block, times: float) -> Sketch:
        (o, i), state = sides(block.layout, times), fitted.state[block.name]
        inputs = None if state.inputs is None else state.inputs.basis[:, -i:]  # ascending
        return Sides(state.outputs.basis[:, -o:], inputs, SmallLayout((o, i), block.layout.free), None)

    return Compressor(blocks, {block.name: leading(block, times) for block, times in shared})


def inner_products(compressor: Compressor, left: Gradients, right: Gradients) -> InnerProducts:
    """What inner products of B and k gradients are without compression, and how far off that may be.

    The k terms of a product of vectors are a sample: var = k var(terms), times 1 - k / p of a mask, which draws from p
    without replacement. For SJLT this is too much by sum_j g_j^2 g'_j^2 on average, as buckets share a fixed number of
    entries. With a matrix or mask on each side the estimate is, by Hoeffding's decomposition into what rows, columns
    and both do, of variance R + C + RC. Row sums, given the columns, tell R + RC; column sums tell C + RC. Their sum
    is too much by RC. Of fewer than some 20 terms, normal intervals are too narrow.

    Args:
        compressor: of both.
        left: compressed, [B, o', i'] of each block.
        right: compressed, [k, o', i'] of each block.

    Raises:
        InfluenceError: nothing was drawn (principal LoGra), or the terms no longer show what the mask left out.
    """
    found = [
        _products(name, sketch.sampled, left[name].double(), right[name].double())
        for name, sketch in compressor.sketches.items()
    ]
    return InnerProducts(add_up(value for value, _ in found), add_up(variance for _, variance in found).sqrt())


def refuse_other_blocks(curvature: Curvature, blocks: Blocks) -> None:
    """Refuse a curvature that was made for blocks of other names or shapes."""
    known, given = curvature.shapes, shapes_of(blocks)
    if known != given:
        raise InfluenceError(
            f"the curvature was made for {_listed(known)}, and is to take {_listed(given)}; make it for those: with a "
            "compressor, for compressor.blocks"
        )


def _listed(shapes: Shapes) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _products(name: str, sampled: tuple[float, float] | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of one block, with their variances, [B, k]."""
    if sampled is None:
        raise InfluenceError(
            f"block {name!r}: one compressed gradient does not tell its error under principal LoGra or mask + SJLT; "
            "compare with another compressor, or several seeds"
        )
    rows = torch.einsum("bcd,kcd->bkc", x, y)  # [B, k, o']
    columns = torch.einsum("bcd,kcd->bkd", x, y)  # [B, k, i']
    return rows.sum(2), _spread(rows, sampled[0]) + _spread(columns, sampled[1])


def _spread(terms: Tensor, share: float) -> Tensor:
    """The variance of the sum of terms [B, k, n] of which a share is chance, [B, k]."""
    if share == 0:
        return torch.zeros_like(terms[..., 0])
    count = terms.shape[2]
    return torch.full_like(terms[..., 0], math.inf) if count == 1 else share * count * terms.var(2)


def _drawn(blocks: Blocks, ratio: float, seed: int, draw: Callable[[Layout, float, Generator], Sketch]) -> Compressor:
    def sketch(block: Block, times: float) -> Sketch:
        generator = _generator(seed, block.name)
        # on the CPU, by its generator, so that it is the same on any device
        drawn = draw(block.layout, times, generator) if times > 1 else FactorMask.drawn(block.layout, 1, generator)
        return on(block.device, drawn)

    return Compressor(blocks, {block.name: sketch(block, times) for block, times in _shared(blocks, ratio)})


def _shared(blocks: Blocks, ratio: float) -> list[tuple[Block, float]]:
    """How many times smaller each block is to be: those above one size are brought to it, the others stay whole."""
    refuse_tables(blocks)
    if not (math.isfinite(ratio) and ratio >= 1):
        raise InfluenceError(f"ratio {ratio}: give how many times smaller gradients become, at least 1")
    sizes = sorted(block.parameters for block in blocks)
    left, level = sum(sizes) / ratio, 0.0
    for index, size in enumerate(sizes):
        level = left / (len(sizes) - index)
        if size > level:
            break
        left -= size
    return [(block, max(1.0, block.parameters / level)) for block in blocks]


def _generator(seed: int, name: str) -> Generator:
    """Of a block, the same on every rank and in every process."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))
