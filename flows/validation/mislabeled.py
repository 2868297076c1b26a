"""The study `mislabeled`: how well each signal ranks the points whose given label is known to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from flows.errors import BadInput
from flows.validation.bench import Bench
from flows.validation.results import Study, row
from flows.validation.setting import Setting
from influence.validation import auc, average_precision, bootstrap


def study(bench: Bench) -> Study:
    """AUC and average precision of every signal."""
    wrong = wrong_labels(bench.setting)
    influence = bench.scores.influence
    signals = bench.scores.suspects | {
        "self-influence": influence.self_influence,
        "influence": -influence.influence.mean(1),
    }
    rows = [
        row(signal, measure, bootstrap(partial(_of, statistic, scores, wrong), wrong.long()))
        for signal, scores in signals.items()
        for measure, statistic in (("AUC", auc), ("AP", average_precision))
    ]
    protocol = f"{int(wrong.sum()):,} of {len(wrong):,} points carry a wrong label; interval over points"
    return Study("mislabeled", protocol, tuple(rows))


def wrong_labels(setting: Setting) -> Tensor:
    """Whether each point's given label is wrong, `[n]`.

    Raises:
        BadInput: The workload does not know the truth, or no label is wrong.
    """
    wrong = setting.wrong
    if wrong is None or not bool(wrong.any()):
        raise BadInput(
            "the study mislabeled needs a workload whose truth() differs from some given labels: leave the study out"
        )
    return wrong


def _of(statistic: Callable[[Tensor, Tensor], float], scores: Tensor, wrong: Tensor, rows: Tensor) -> float:
    return statistic(scores[rows], wrong[rows])
