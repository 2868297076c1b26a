"""Figures as PNG bytes: matplotlib without a display, colours of Okabe and Ito that colour-blind readers tell apart."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from storage.errors import StorageError
from storage.report import Arm, Interval

BLUE, GREY = "#0072B2", "#555555"
LINES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00")


def score_histogram(values: NDArray[Any], thresholds: Mapping[str, float], label: str) -> bytes:
    """How the points are spread over a score, and where the policies cut.

    Args:
        values: One score per point, [N]; what is not finite is left out.
        thresholds: Cut by name, in the unit of the score.
        label: Name and unit of the score.

    Returns:
        A PNG.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_subplot()
    axes.hist(finite, bins=60, color=BLUE, log=True)  # the few points that matter are invisible on a linear axis
    for color, (name, cut) in zip(cycle(LINES), thresholds.items()):
        axes.axvline(cut, color=color, linestyle="--", label=f"{name}: {cut:.3g}")
    if thresholds:
        axes.legend(frameon=False)
    axes.set(xlabel=label, ylabel="points (log scale)")
    return as_png(figure)


def arm_comparison(arms: Sequence[Arm]) -> bytes:
    """Holdout loss, and accuracy where all arms have one, with intervals, side by side.

    Returns:
        A PNG.

    Raises:
        StorageError: no arm.
    """
    if not arms:
        raise StorageError("there are no arms to compare; retrain first")
    accuracies = [arm.accuracy for arm in arms if arm.accuracy is not None]
    panels = [("holdout loss (nats), lower is better", [arm.loss for arm in arms])]
    if len(accuracies) == len(arms):
        panels.append(("holdout accuracy, higher is better", accuracies))
    figure = Figure(figsize=(3.8 * len(panels), 1.2 + 0.5 * len(arms)))
    for axes, (title, intervals) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        draw_intervals(axes, [arm.name for arm in arms], intervals)
        axes.set_xlabel(title)
    return as_png(figure)


def draw_intervals(axes: Axes, names: Sequence[str], intervals: Sequence[Interval]) -> None:
    """One row per name, from the top: its mean and the interval around it."""
    means = np.array([interval.mean for interval in intervals])
    low = means - [interval.low for interval in intervals]
    high = [interval.high for interval in intervals] - means
    rows = np.arange(len(names))[::-1]
    axes.errorbar(means, rows, xerr=np.maximum(0, [low, high]), fmt="o", color=BLUE, ecolor=GREY, capsize=3)
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", alpha=0.3)


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG that is the same at every call."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("tight")
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
