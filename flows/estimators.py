"""The estimators of tamis.toml by name: what builds them, how they are damped, what they cost and when to use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from flows.config import Config
from flows.errors import BadInput
from flows.sections.scoring import BlocksConfig, CompressionKind, DampingConfig, EstimatorName
from influence import (
    EKFAC,
    KFAC,
    PCG,
    Arnoldi,
    Blocks,
    Compressor,
    Damping,
    DualGaussNewton,
    GaussNewton,
    Identity,
    Restorable,
    Selection,
    Share,
    by_name,
    by_type,
    factor_mask,
    features,
    holding,
    last,
    masked_sjlt,
    random_logra,
    sjlt,
    trained,
    within,
)

CUT = 0.0003  # of the trace: on a Fashion-MNIST MLP 59 % of the roots go, and pairs keep a rank correlation of .999


def _pcg(blocks: Blocks, share: Share) -> Restorable:
    """Preconditioned by EK-FAC on a single block; on several by the dual of the largest roots (`iterative`)."""
    return PCG(blocks, EKFAC(blocks, share) if len(blocks) == 1 else None, share)


@dataclass(frozen=True)
class Estimator:
    """One way to approximate the curvature.

    Attributes:
        build: From the selected blocks and this rank's share.
        damping: Unless the configuration says: the weight decay, `horizon` (1 / T + weight decay), or 1.
        exactness: What it leaves out of the Gauss-Newton matrix of the blocks.
        cost: Of one checkpoint, for n train points and p parameters in the blocks.
        memory: Of each rank, beside the model.
        use: When to take it.
    """

    build: Callable[[Blocks, Share], Restorable]
    damping: Literal["weight_decay", "horizon", "one"]
    exactness: str
    cost: str
    memory: str
    use: str


ESTIMATORS: Mapping[EstimatorName, Estimator] = {
    "ekfac": Estimator(
        build=lambda blocks, share: EKFAC(blocks, share),
        damping="weight_decay",
        exactness="each block alone; Kronecker factors, with the exact diagonal in their eigenbasis",
        cost="2 passes and an eigendecomposition per block",
        memory="2 square matrices per block",
        use="the default: models of any size",
    ),
    "kfac": Estimator(
        build=lambda blocks, share: KFAC(blocks, share),
        damping="weight_decay",
        exactness="each block alone; Kronecker factors",
        cost="1 pass and an eigendecomposition per block",
        memory="2 square matrices per block",
        use="perceptrons, or where the second pass of ekfac is too dear",
    ),
    "dense": Estimator(
        build=lambda blocks, share: GaussNewton(blocks),
        damping="horizon",
        exactness="exact, blocks together",
        cost="1 pass, p^3",
        memory="2 p^2 numbers",
        use="a head or a small model: at most 4,096 parameters",
    ),
    "dual": Estimator(
        build=lambda blocks, share: DualGaussNewton(blocks, share, cut=CUT),
        damping="horizon",
        exactness="blocks together; without the smallest roots, .03 % of the trace",
        cost="1 pass, r^3 for r large roots, 2 to 6 per point",
        memory="2 r^2 numbers, and the factors of all points",
        use="few points, any number of parameters: at most 12,000 roots",
    ),
    "arnoldi": Estimator(
        build=lambda blocks, share: Arnoldi(blocks, share=share),
        damping="horizon",
        exactness="blocks together; the 100 largest directions, the others by the mean of their eigenvalues",
        cost="1 pass; 200 products with n points",
        memory="300 gradients, and the factors of all points",
        use="more points than dual takes: between ekfac and dual in quality, damped alike, and in cost",
    ),
    "pcg": Estimator(
        build=_pcg,
        damping="horizon",
        exactness="exact to a residual of 1e-6, blocks together",
        cost="1 pass; 7 to 40 products with n points for each query and each train point",
        memory="the factors of all points",
        use="few queries exactly; self-influence takes a solution for each point",
    ),
    "identity": Estimator(
        build=lambda blocks, share: Identity(blocks),
        damping="one",
        exactness="no curvature: the inner product of gradients",
        cost="no pass",
        memory="none",
        use="a baseline to compare the others with",
    ),
}


COMPRESSORS: Mapping[CompressionKind, Callable[[Blocks, float, int], Compressor]] = {
    "mask": factor_mask,
    "sjlt": sjlt,
    "mask+sjlt": masked_sjlt,
    "logra": random_logra,
}


DRAWS = 1000
"""More than there are checkpoints: those of another seed are other draws."""


@dataclass(frozen=True)
class Approximation:
    """A curvature that is not yet fitted, and what makes gradients small before it takes them."""

    curvature: Restorable
    compressor: Compressor | None


def named(config: Config) -> str:
    """The configured estimator as it is named in what it leaves behind."""
    small = config.scoring.compression
    return config.scoring.estimator if small is None else f"{config.scoring.estimator}, {small.kind} {small.ratio:g} x"


def approximation(config: Config, blocks: Blocks, share: Share, checkpoint: int = 0) -> Approximation:
    """The configured estimator on the selected blocks.

    Args:
        config: The settings.
        blocks: Of the model.
        share: What this rank does.
        checkpoint: Which of the training's. Each is compressed by a draw of its own, so that what a single draw shows
            neither adds up over the checkpoints nor makes them agree.
    """
    small, scoring = config.scoring.compression, config.scoring
    seed = DRAWS * config.training.seed + checkpoint
    compressor = None if small is None else COMPRESSORS[small.kind](blocks, small.ratio, seed)
    taken = blocks if compressor is None else compressor.blocks
    return Approximation(ESTIMATORS[scoring.estimator].build(taken, share), compressor)


def damping_of(config: Config, estimator: EstimatorName, given: DampingConfig | None, horizon: float | None) -> Damping:
    """What is added to the eigenvalues.

    Args:
        config: Whose training is meant.
        estimator: Decides where nothing is given.
        given: The configured damping.
        horizon: Sum of the learning rates over the training; None for a model that was trained elsewhere.

    Raises:
        BadInput: The kind is `horizon`, and the training is not known.
    """
    decay = config.training.weight_decay
    if given is not None and given.value is not None:
        return Damping(given.kind, given.value)
    if given is None and ESTIMATORS[estimator].damping != "horizon":
        return Damping("absolute", 1.0 if ESTIMATORS[estimator].damping == "one" else decay)
    if horizon is None:
        raise BadInput(
            f"the damping of {estimator} is 'horizon', which needs the length of the training, and this model was "
            'trained elsewhere: give scoring.damping = { kind = "absolute", value = … }'
        )
    return Damping("horizon", horizon, decay)


def selections(config: BlocksConfig, energies: Mapping[str, float], usual: Selection = features) -> list[Selection]:
    """The configured choice of blocks.

    Args:
        config: Its keys, in their order.
        energies: Gradient energy of every block of the model (`flows/ranks/blocks.py`).
        usual: Those that are chosen from where neither types nor names are given.
    """
    chosen: list[Selection] = [] if config.types or config.names else [usual, trained]
    if config.types:
        chosen.append(by_type(*config.types))
    if config.names:
        chosen.append(by_name(*config.names))
    if config.energy is not None:
        chosen.append(holding(config.energy, energies))
    if config.last is not None:
        chosen.append(last(config.last))
    if config.budget is not None:
        chosen.append(within(config.budget))
    return chosen
