"""The estimators of tamis.toml by name: what builds them, how they are damped, what they cost and when to use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from flows.config import BlocksConfig, Config, DampingConfig, EstimatorName
from influence import (
    EKFAC,
    KFAC,
    Blocks,
    Curvature,
    Damping,
    GaussNewton,
    Selection,
    Share,
    by_name,
    by_type,
    features,
    last,
    within,
)


@dataclass(frozen=True)
class Estimator:
    """One way to approximate the curvature.

    Attributes:
        build: From the selected blocks and this rank's share.
        damping: Where its damping comes from unless the configuration says: the weight decay, or 1 / T + weight decay.
        cost: In words, for `tamis estimators`.
        use: When to take it.
    """

    build: Callable[[Blocks, Share], Curvature]
    damping: Literal["weight_decay", "horizon"]
    cost: str
    use: str


ESTIMATORS: Mapping[EstimatorName, Estimator] = {
    "ekfac": Estimator(
        lambda blocks, share: EKFAC(blocks, share),
        "weight_decay",
        "2 passes over the data, one eigendecomposition per block; memory: two square matrices per block",
        "the default, for models of any size",
    ),
    "kfac": Estimator(
        lambda blocks, share: KFAC(blocks, share),
        "weight_decay",
        "1 pass; otherwise as ekfac",
        "when the second pass of ekfac is too dear; never closer to the Gauss-Newton matrix",
    ),
    "dense": Estimator(
        lambda blocks, share: GaussNewton(blocks),
        "horizon",
        "1 pass; memory p^2 and time p^3 for p parameters, at most 4,096",
        "exact on a head or a small model",
    ),
}


def damping_of(config: Config, estimator: EstimatorName, given: DampingConfig | None, horizon: float) -> Damping:
    """What is added to the eigenvalues.

    Args:
        config: Whose training is meant.
        estimator: Decides where nothing is given.
        given: The configured damping.
        horizon: Sum of the learning rates over the training.
    """
    decay = config.training.weight_decay
    if given is None:
        given_kind = ESTIMATORS[estimator].damping
        return Damping("absolute", decay) if given_kind == "weight_decay" else Damping("horizon", horizon, decay)
    if given.kind == "horizon":
        return Damping("horizon", horizon, decay)
    assert given.value is not None  # the configuration has checked it
    return Damping(given.kind, given.value)


def selections(config: BlocksConfig) -> list[Selection]:
    """The configured choice of blocks but for `energy`, which needs a probe."""
    chosen: list[Selection] = [] if config.types or config.names else [features]
    if config.types:
        chosen.append(by_type(*config.types))
    if config.names:
        chosen.append(by_name(*config.names))
    if config.last is not None:
        chosen.append(last(config.last))
    if config.budget is not None:
        chosen.append(within(config.budget))
    return chosen
