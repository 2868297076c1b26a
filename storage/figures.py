"""Figures as PNG bytes: matplotlib without a display, colours of Okabe and Ito that colour-blind readers tell apart."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from storage.errors import StorageError
from storage.report_parts import Arm, Interval, Slice

BLUE, GREY, INK = "#0072B2", "#555555", "#222222"
FATES: Mapping[str, tuple[str, str, str]] = {
    "stays": ("#8A8A8A", ".", ""),
    "to remove": ("#D55E00", "x", "////"),
    "to relabel": ("#0072B2", "s", "\\\\\\\\"),
    "to restore": ("#009E73", "^", "...."),
}
"""Of a point: its colour, marker and stripes."""
LINES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00")


def score_histogram(fates: Mapping[str, NDArray[Any]], cuts: Mapping[str, float], label: str) -> bytes:
    """How the points of each fate are spread over a score, and where the policies cut.

    Args:
        fates: Scores by fate, of `FATES`; what is not finite is left out.
        cuts: Score by name, in the unit of the score.
        label: Name and unit of the score.

    Returns:
        A PNG.
    """
    finite = {fate: values[np.isfinite(values)] for fate, values in fates.items()}
    everything = np.concatenate([np.empty(0), *finite.values()])
    edges = np.histogram_bin_edges(everything, bins=60)
    figure, axes = _plot()
    for fate, values in finite.items():
        if len(values):
            axes.hist(values, bins=edges.tolist(), label=f"{fate}: {len(values):,}", **_filled(fate), log=True)
    for name, cut in cuts.items():
        axes.axvline(cut, color=INK, linestyle="--", linewidth=1, label=f"{name}: {cut:.3g}")
    if len(everything):
        axes.legend(frameon=False)
    axes.set(xlabel=label, ylabel="points (log scale)")  # the few that matter are invisible on a linear axis
    return as_png(figure)


def quadrant(fates: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> bytes:
    """Influence against self-influence, on logarithmic axes, coloured by fate.

    Args:
        fates: Of `FATES`, with the mean influence and the self-influence of its points, each [n].

    Returns:
        A PNG.
    """
    figure, axes = _plot()
    sizes = np.concatenate([np.empty(0), *(np.abs(influence) for influence, _ in fates.values())])
    for fate, (influence, own) in fates.items():
        if len(influence):
            axes.plot(influence, own, FATES[fate][1], color=FATES[fate][0], alpha=0.7, markersize=4, label=fate)
    axes.axvline(0, color=INK, linewidth=0.8)
    if (sizes > 0).any():
        axes.set_xscale("symlog", linthresh=float(np.median(sizes[sizes > 0])))
        axes.set_yscale("log")
        axes.legend(frameon=False, loc="lower left")
    axes.set(xlabel="harmful  ←  influence (nats)  →  helpful", ylabel="self-influence (nats · points)")
    return as_png(figure)


def _plot() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.8))
    return figure, figure.add_subplot()


def _filled(fate: str) -> dict[str, Any]:
    """Bars of what stays are filled, the others striped too: they overlap, and colour alone tells nobody apart."""
    color, stripes = FATES[fate][0], FATES[fate][2]
    return {"color": color, "alpha": 0.65, "hatch": stripes, "edgecolor": color}


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


def slice_sums(slices: Sequence[Slice]) -> bytes:
    """Summed influence of slices with its intervals, from the top; patterns have a star.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.3 * len(slices)))
    axes = figure.add_subplot()
    names = [f"{'★ ' * one.pattern}{one.facet}: {_shortened(one.name)}" for one in slices]
    draw_intervals(axes, [name.replace("$", r"\$") for name in names], [one.total for one in slices])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("harmful  ←  influence, sum (nats)  →  helpful")
    return as_png(figure)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


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
