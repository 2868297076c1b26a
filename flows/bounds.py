"""How sure a mean over holdout points and seeds is: bounds and p-values from draws of that mean.

Points are resampled. Seeds are two to five, of which resampling would make far too narrow bounds (three values have ten
resamples, and all three are below 0 once in eight), so their part of the error is drawn from Student's t; deviations of
few points are studentized too. The error of the seeds is that of randomized blocks (Fisher 1935): what is left of the
arms' means once arm and seed are taken out, pooled over the arms, which are the same model trained by the same recipe.
Both parts hold the noise of a single point at a single seed, which is then counted twice, as by any bootstrap of two
crossed factors (Owen 2007, The pigeonhole bootstrap): bounds err to the safe side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LEVEL = 0.95
MANY = 100  # degrees of freedom, beyond which Student's t is taken for the normal
PIECE = 1 << 20  # points drawn at a time


@dataclass(frozen=True)
class Estimate:
    """A mean over holdout points and seeds.

    Attributes:
        low: With `high`, the two-sided 95 % interval.
        lower: One-sided 95 % lower bound; `upper` the upper one.
    """

    mean: float
    low: float
    high: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Draws:
    """What the mean could be: `[R]`, float64."""

    mean: float
    of_mean: Tensor

    def estimate(self, least: float = -torch.inf, most: float = torch.inf) -> Estimate:
        """Mean, interval and bounds of what lies between `least` and `most`."""
        tail = 1 - LEVEL
        levels = torch.tensor([tail / 2, 1 - tail / 2, tail, LEVEL], dtype=torch.float64)
        low, high, lower, upper = torch.quantile(self.of_mean, levels).clamp(least, most).tolist()
        return Estimate(self.mean, low, high, lower, upper)

    def upper(self, alpha: float) -> float:
        """One-sided upper bound at level 1 - alpha."""
        return float(torch.quantile(self.of_mean, 1 - alpha))

    def p_above(self, limit: float) -> float:
        """p-value of the hypothesis that the mean is at most `limit`; never 0."""
        below = int((self.of_mean <= limit).sum())
        return (1 + below) / (1 + len(self.of_mean))


@dataclass(frozen=True)
class SeedError:
    """Of a mean over seeds: its standard error, and the degrees of freedom that it was estimated with."""

    error: float
    degrees: int

    @classmethod
    def of_mean(cls, means: Tensor) -> SeedError:
        """Of the mean of one number for each seed, `[S]`; of a single seed nothing is known, and nothing added."""
        seeds = len(means)
        return cls(float(means.std()) / seeds**0.5 if seeds > 1 else 0.0, max(1, seeds - 1))

    @classmethod
    def of_difference(cls, means: Tensor) -> SeedError:
        """Of the difference of two arms, from one number for each arm and seed, `[A, S]`; at least 2 of both."""
        arms, seeds = means.shape
        left = means - means.mean(1, keepdim=True) - means.mean(0, keepdim=True) + means.mean()
        degrees = (arms - 1) * (seeds - 1)
        return cls(float((2 * left.square().sum() / degrees / seeds).sqrt()), degrees)


def draw_mean(values: Tensor, resamples: int, seed: int, of_seeds: SeedError | None = None) -> Draws:
    """Draw the mean of `values` over both axes: seeds and points.

    Args:
        values: `[S, N]`: one number per seed and holdout point, the same points in every row; at least 2 points.
        resamples: How many draws.
        seed: Of the draws.
        of_seeds: The seeds' part of the error; by default from these values alone.
    """
    of_seeds = of_seeds or SeedError.of_mean(values.mean(1))
    generator = torch.Generator().manual_seed(seed)
    points = values.shape[1]
    of_point = values.mean(0) - values.mean()  # [N]
    drawn = torch.empty(resamples, dtype=torch.float64)
    for rows in torch.arange(resamples).split(max(1, PIECE // points)):
        drawn[rows] = of_point[torch.randint(points, (len(rows), points), generator=generator)].mean(1)
    drawn *= (points / (points - 1)) ** 0.5 / _deviation(points - 1, resamples, generator)
    normal = torch.randn(resamples, generator=generator, dtype=torch.float64)
    drawn += of_seeds.error * normal / _deviation(of_seeds.degrees, resamples, generator)
    return Draws(float(values.mean()), values.mean() + drawn)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values of a family of tests: at most a share `a` of families has one below `a` that should not be.

    Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    adjusted, least = dict[str, float](), 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for passed, name in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - passed) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def _deviation(degrees: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Draws of a sample's standard deviation as a share of the true one, `[R]`."""
    if degrees > MANY:
        return torch.ones(resamples, dtype=torch.float64)
    return torch.randn(resamples, degrees, generator=generator, dtype=torch.float64).square().mean(1).sqrt()
