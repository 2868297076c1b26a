"""Compressors by name, models to try them on, and their maps as matrices; shared by the tests of both files."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence import (
    KFAC,
    Blocks,
    Curvature,
    Damping,
    Factor,
    Factors,
    Gradients,
    Influence,
    PairScores,
    materialise,
    select,
)
from influence.blocks import Block
from influence.compression import (
    Compressor,
    coordinate_mask,
    factor_mask,
    gaussian,
    masked_sjlt,
    principal_logra,
    random_logra,
    sjlt,
)
from influence.sketches import SmallLayout
from tests.influence.cases import (
    ABSOLUTE,
    TASK,
    conv_net,
    fitted,
    images,
    mlp,
    normed,
    over_positions,
    points,
    split,
)

Make = Callable[..., Compressor]
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, values of order 1
SCORES = {"rtol": 1e-9, "atol": 1e-9}  # through inverses of order 100
DRAWN: dict[str, Make] = {
    "coordinate mask": coordinate_mask,
    "factor mask": factor_mask,
    "gaussian": gaussian,
    "sjlt": sjlt,
    "mask + sjlt": masked_sjlt,
    "logra": random_logra,
}
VECTORS = ["coordinate mask", "gaussian", "sjlt"]
SIDES = ["factor mask", "logra"]
MODELS = {
    "mlp": (mlp(), points(30), points(9, seed=2)),
    "conv": (conv_net(), images(30), images(9, seed=2)),
    "positions": (over_positions(), points(30, positions=4), points(9, positions=4, seed=2)),
    "free": (normed(), points(30), points(9, seed=2)),
}
every_model = pytest.mark.parametrize("case", MODELS)
every_drawn = pytest.mark.parametrize("kind", DRAWN)
every_kind = pytest.mark.parametrize("kind", [*DRAWN, "principal"])


def compressor(kind: str, case: str, ratio: float = 4, seed: int = 0) -> Compressor:
    model, train, _ = MODELS[case]
    blocks = select(model)
    if kind != "principal":
        return DRAWN[kind](blocks, ratio, seed)
    kfac = KFAC(blocks)
    fitted(kfac, model, train)
    return principal_logra(blocks, ratio, kfac)


def block(o: int, i: int) -> Blocks:
    """One block of a shape, of no layer."""
    return (Block("block", nn.Linear(i, o), SmallLayout((o, i), free=False)),)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compressed(small: Compressor, full: Tensor) -> Tensor:
    """Gradients [B, o, i] of the only block: every column is a position."""
    eye = torch.eye(full.shape[2], dtype=full.dtype).expand(len(full), -1, -1)
    return materialise(small({"block": Factor(eye, full.mT)})["block"])


def gradients(factors: Factors) -> Gradients:
    return {name: materialise(factor) for name, factor in factors.items()}


def inner(left: Gradients, right: Gradients) -> Tensor:
    """Inner products of each with its like, [k]."""
    return torch.stack([(left[name] * right[name]).flatten(1).sum(1) for name in left]).sum(0)


def matrices(small: Compressor) -> dict[str, Tensor]:
    """C of each block, by its adjoint on every unit vector, [o' i', o i]."""
    shapes = {one.name: one.weight_shape for one in small.blocks}
    units = {name: torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape) for name, shape in shapes.items()}
    return {name: full.flatten(1) for name, full in small.adjoint(units).items()}


def scores(
    case: str, curvature: Curvature, small: Compressor | None, damping: Damping = ABSOLUTE, **how: Any
) -> PairScores:
    model, train, queries = MODELS[case]
    size = how.pop("size", 7)
    with Influence(model, TASK, curvature, select(model), compressor=small, **how) as influence:
        influence.fit(split(train, size), damping)
        return influence.pairs(split(train, size), split(queries, 4))


def rows(full: Mapping[str, Tensor], keep: int) -> Tensor:
    return torch.cat([one.flatten(keep) for one in full.values()], keep)
