"""Figures of a validation: what signals reached, how models fare after removals, how far scores move."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from storage.figures import BLUE, GREY, LINES, as_png, draw_intervals
from storage.report_parts import Interval


def measure_panels(panels: Mapping[str, Mapping[str, Interval]]) -> bytes:
    """One panel per measure: its value for each signal, with intervals.

    Args:
        panels: Measure, with its unit, to signal to interval.

    Returns:
        A PNG.
    """
    longest = max(len(signals) for signals in panels.values())
    figure = Figure(figsize=(3.8 * len(panels), 1.2 + 0.4 * longest))
    for axes, (measure, signals) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        draw_intervals(axes, list(signals), list(signals.values()))
        axes.set_xlabel(measure)
    return as_png(figure)


def removal_curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, Interval]]]]) -> bytes:
    """One panel per measure: its course for each signal over the share of the points that was removed.

    Args:
        panels: Measure, with its unit, to signal to (share, interval) by rising share; a signal of one point is
            drawn as a level line.

    Returns:
        A PNG.
    """
    drawn = [signal for curves in panels.values() for signal, curve in curves.items() if len(curve) > 1]
    colors = dict(zip(dict.fromkeys(drawn), cycle((BLUE, *LINES))))
    figure = Figure(figsize=(4.6 * len(panels), 3.6))
    for axes, (measure, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for signal, curve in curves.items():
            means = [interval.mean for _, interval in curve]
            if len(curve) == 1:
                axes.axhline(means[0], color=GREY, linestyle=":", label=signal)
                continue
            shares = [100 * share for share, _ in curve]
            axes.plot(shares, means, color=colors[signal], marker="o", markersize=4, label=signal)
            low, high = [interval.low for _, interval in curve], [interval.high for _, interval in curve]
            axes.fill_between(shares, low, high, color=colors[signal], alpha=0.1, linewidth=0)
        axes.set(xlabel="points removed (%)", ylabel=measure)
        axes.legend(frameon=False, fontsize="small")
    return as_png(figure)


def query_strips(panels: Mapping[str, Mapping[str, Sequence[float]]], bound: float) -> bytes:
    """One panel per measure, one strip per variation: every query a dot, the median, and 10 to 90 % of the queries.

    Args:
        panels: Measure to variation to one value per query.
        bound: Below which a median is bad; drawn as a line.

    Returns:
        A PNG.
    """
    longest = max(len(strips) for strips in panels.values())
    figure = Figure(figsize=(5.6 * len(panels), 1.2 + 0.32 * longest))
    for axes, (measure, strips) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        rows = range(len(strips))[::-1]
        for row, values in zip(rows, strips.values()):
            low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
            spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(values))  # so that dots do not hide each other
            axes.scatter(values, row + spread, s=4, color=GREY, alpha=0.25, linewidths=0)
            axes.plot([low, high], [row, row], color=BLUE, linewidth=3, solid_capstyle="butt")
            axes.plot(median, row, "o", color=BLUE, markeredgecolor="white", markersize=7)
        axes.axvline(bound, color=LINES[0], linestyle="--")
        axes.set_yticks(rows, list(strips))
        axes.set_ylim(-0.6, len(strips) - 0.4)
        axes.set_xlabel(f"{measure}, each query")
        axes.grid(axis="x", alpha=0.3)
    return as_png(figure)
