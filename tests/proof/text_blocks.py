"""When fewer parameters suffice: influence on the head, the last layer, LoRA's adapters or all layers, on one seed.

Each is compared with exact Gauss-Newton on all that is trained, and by what removing the points that it calls harmful
is worth. LoRA's adapters need a model that was trained by them alone; the points that they name are removed from the
same trainings as those of the others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from influence import (
    Blocks,
    agreement,
    auc,
    average_precision,
    by_name,
    by_type,
    features,
    last,
    select,
)
from tests.proof.text_cells import removing, retraining_seed, sets_of, suspected
from tests.proof.text_models import Bench, Choice, Outcome, Scores

LAYER = 7  # blocks: six linear layers of the last encoder layer, and the head
ASKED, SINGLES = 50, 10  # train points and single queries of the rank correlations
PLAIN, ADAPTED = "plain", "LoRA"
CHOICES: Mapping[str, Choice] = {
    "the head": lambda model: select(model, features, last(1)),
    "the last layer and the head": lambda model: select(model, features, last(LAYER)),
    "all linear layers": lambda model: select(model, features),
    ADAPTED: lambda model: select(model, by_name("*.lora_A.*", "*.lora_B.*", "*.modules_to_save.*")),
}


@dataclass(frozen=True)
class Size:
    """Of one kind of cell.

    Attributes:
        whole: Whether the whole model is trained, and not the layers that the shipped TOML names.
        points: Train points; judged: holdout points.
        judged: See points.
        fitted: Train points that both matrices are the mean of where they are compared.
        turns: Retrainings of each set.
    """

    whole: bool
    points: int
    judged: int
    fitted: int
    turns: int


SIZES: Mapping[str, Size] = {"blocks": Size(False, 1000, 3000, 200, 1), "full": Size(True, 800, 1000, 80, 1)}


@dataclass(frozen=True)
class Way:
    """Influence on some blocks.

    Attributes:
        parameters: In them.
        seconds: Of CPU, for EK-FAC of all points.
        estimator: Rank correlations of EK-FAC with exact Gauss-Newton on all that is trained, of pairs and of means.
        blocks: The same of exact Gauss-Newton on these blocks.
        found: AUC and average precision of the flips, by influence and by self-influence.
    """

    parameters: int
    seconds: float
    estimator: tuple[float, float]
    blocks: tuple[float, float]
    found: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Compared:
    """One seed: the ways, and the clean holdout set after removing by each.

    Attributes:
        wrong: Flipped train points.
        outcomes: Means over the turns.
        parameters: In the layers that are trained.
        training: Seconds of CPU of each kind of training; exact: of exact Gauss-Newton.
        exact: See training.
        seconds: Of all.
    """

    size: Size
    wrong: int
    ways: dict[str, Way]
    outcomes: dict[str, Outcome]
    parameters: int
    training: dict[str, float]
    exact: float
    seconds: float


def measure(size: Size, seed: int) -> Compared:
    """Measure the reviews with one seed."""
    started = time.process_time()
    bench = Bench("reviews", seed, size.points, size.judged, size.whole)
    models, training = _trained(bench, seed, size)
    fitted, asked = _drawn(bench, 0, size.fitted), _drawn(bench, 1, ASKED)
    truth = bench.exact(models[PLAIN], learned, fitted, asked, SINGLES)
    ways, ranked = dict[str, Way](), {"suspicion": suspected(bench)[0].score}
    for name, choice in CHOICES.items():
        if (model := models.get(ADAPTED if name == ADAPTED else PLAIN)) is not None:
            ours = bench.estimated([model], choice)
            few = bench.estimated([model], choice, SINGLES, fitted, asked)
            exact = bench.exact(model, choice, fitted, asked, SINGLES)
            ranked[name] = -ours.mean
            ways[name] = Way(
                parameters=sum(block.parameters for block in choice(model)),
                seconds=ours.seconds,
                estimator=_agreement(few, truth),
                blocks=_agreement(exact, truth),
                found={key: _found(one, bench.wrong) for key, one in (("influence", -ours.mean), ("own", ours.own))},
            )
    return Compared(
        size=size,
        wrong=int(bench.wrong.sum()),
        ways=ways,
        outcomes=_outcomes(bench, sets_of(ranked, bench.wrong, seed), seed, size.turns),
        parameters=sum(block.parameters for block in learned(models[PLAIN])),
        training=training,
        exact=truth.seconds,
        seconds=time.process_time() - started,
    )


def learned(model: nn.Module) -> Blocks:
    """All layers; of a model that is trained whole, its tables are left out."""
    return select(model, by_type("Linear", "LayerNorm"))


def _trained(bench: Bench, seed: int, size: Size) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The last checkpoint of each kind of model, and the seconds of CPU of its training."""
    models, seconds = {}, {}
    for kind in (PLAIN,) if size.whole else (PLAIN, ADAPTED):
        started = time.process_time()
        models[kind] = bench.train(torch.zeros_like(bench.wrong), seed, adapted=kind == ADAPTED)[-1]
        seconds[kind] = time.process_time() - started
    return models, seconds


def _drawn(bench: Bench, draw: int, count: int) -> Tensor:
    order = torch.randperm(len(bench.points), generator=torch.Generator().manual_seed(draw))
    return order[:count].sort().values


def _agreement(found: Scores, truth: Scores) -> tuple[float, float]:
    """Rank correlations over pairs, and over means."""
    known = agreement(*(torch.cat([one.mean[:, None], one.single], 1) for one in (found, truth)))
    return known.pairs or 0.0, known.means or 0.0


def _found(signal: Tensor, wrong: Tensor) -> tuple[float, float]:
    return auc(signal, wrong), average_precision(signal, wrong)


def _outcomes(bench: Bench, chosen: Mapping[str, Sequence[int]], seed: int, turns: int) -> dict[str, Outcome]:
    """Of a model without each of the sets, means over the turns."""
    found = {}
    for name, gone in chosen.items():
        removed = removing(gone, len(bench.points))
        each = [bench.retrained(removed, retraining_seed(seed, turn)) for turn in range(turns)]
        found[name] = Outcome(fmean(one.accuracy for one in each), fmean(one.loss for one in each))
    return found
