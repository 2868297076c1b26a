"""Whether the choice of blocks can be trusted: a few pairs are scored again on all parameters of the model, exactly.

Three answers for the same train points and queries at the last checkpoint: the configured estimator on the selected
blocks; exact Gauss-Newton on the same blocks; exact Gauss-Newton on every parameter that is trained. The second against
the third is what the choice of blocks costs, the first against the third what is lost in all. Each rank solves for its
queries; the points are drawn by the hash of their ids, so they are the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from flows.asking import at_a_time, task_of
from flows.errors import BadInput
from flows.estimators import ESTIMATORS, damping_of
from flows.ranks.attribution import Attribution, Setting
from flows.ranks.blocks import drawn
from flows.ranks.points import Points
from flows.ranks.rank import Alone, Place
from flows.trust import Probe
from flows.workload import Workload
from influence import Blocks, Share, agreement, exact_influence
from influence.curvature.iterative import LIMIT

QUERIES = 10
CURVATURE = 1000  # train points that the exact matrix is the mean of, at most
BATCH = 64


def probe(
    setting: Setting,
    workload: Workload,
    model: nn.Module,
    last: Attribution,
    points: Points,
    queries: Points,
    place: Place,
) -> Probe | None:
    """Compare the blocks with the whole model; every rank must call this together.

    Args:
        setting: Says how many points.
        workload: Says how the model is asked.
        model: Another copy of the last checkpoint's.
        last: Its attribution, prepared.
        points: The train set.
        queries: The query set.
        place: This process.

    Returns:
        None where no probe is wanted, or where the exact matrix has no damping: that of the identity is the horizon's,
        which is not known of a model that was trained elsewhere.
    """
    damping = _damping(setting, last) if setting.config.scoring.probe else None
    if damping is None:
        return None
    exact = Exact(model, workload, points, queries, place)
    rows, columns = drawn(points, setting.config.scoring.probe), drawn(queries, QUERIES)
    found = torch.zeros(len(rows), 1 + len(columns), dtype=torch.float64)
    if place.index == 0 or last.split:
        influence = last.score_points(points, rows).blocks.influence  # [b, m]
        found += torch.cat([influence.mean(1, keepdim=True), influence[:, columns]], 1) * (place.index == 0)
    place.sum(found)
    truth = exact.influence(rows, columns, exact.learned, damping)
    chosen = exact.within(last.blocks)
    on_blocks = truth if chosen == exact.learned else exact.influence(rows, columns, chosen, damping)
    return Probe(
        points=len(rows),
        queries=len(columns),
        curvature_points=len(exact.curvature),
        parameters=sum(parameter.numel() for name, parameter in model.named_parameters() if name in exact.learned),
        damping=damping,
        blocks=agreement(on_blocks, truth),
        estimator=agreement(found, truth),
    )


def rehearse(model: nn.Module, workload: Workload, blocks: Blocks, points: Points) -> None:
    """Try the exact influence of two points on each other.

    Raises:
        BadInput: The model has no forward derivative, or does not train the blocks.
    """
    pair = torch.arange(2)
    try:
        exact = Exact(model, workload, points, points, Alone(lambda *_: None))
        exact.curvature = pair
        exact.influence(pair, pair, exact.within(blocks), damping=1.0)
    except RuntimeError as error:  # torch has no class of its own for what it cannot differentiate
        why = str(error).splitlines()[0]
        raise BadInput(
            f"the probe of the blocks takes forward derivatives of {type(model).__name__}, which fails: {why}; set "
            "scoring.probe = 0"
        ) from error


class Exact:
    """Exact influence on parameters of one model.

    Attributes:
        learned: Names of the parameters that are trained.
        curvature: Places of the train points that the matrix is the mean of.
    """

    def __init__(self, model: nn.Module, workload: Workload, points: Points, queries: Points, place: Place) -> None:
        self.learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.curvature = drawn(points, CURVATURE)
        self._model = model.eval().requires_grad_(True)
        self._task = task_of(workload)
        self._batch = at_a_time(workload, BATCH)
        self._points, self._queries, self._place = points, queries, place

    def within(self, blocks: Blocks) -> list[str]:
        """The trained parameters of some blocks."""
        names = {block.name for block in blocks}
        chosen = [name for name in self.learned if (name.rpartition(".")[0] or "model") in names]
        if not chosen:
            raise BadInput(f"no parameter of the blocks {', '.join(sorted(names))} is trained: select others")
        return chosen

    def influence(self, rows: Tensor, columns: Tensor, parameters: list[str], damping: float) -> Tensor:
        """Of the train points `rows` on the mean of all queries and on the queries `columns`, `[b, 1 + q]`."""
        groups = [torch.arange(len(self._queries)), *columns.split(1)]
        mine = list(Share(self._place.index, self._place.world).of(len(groups)))
        found = torch.zeros(len(rows), len(groups), dtype=torch.float64)
        exact = exact_influence(
            self._model,
            self._task,
            _Watched(self._points, self.curvature.split(self._batch), self._place),
            [self._points.take(row) for row in rows.split(1)],
            [_batches(self._queries, groups[group].split(self._batch)) for group in mine],
            parameters,
            damping,
            int(self._points.in_train.sum()),
        )
        found[:, mine] = exact.cpu()
        self._place.sum(found)
        return found


class _Watched:
    """The curvature's points, read anew for every product, each of which shows that work goes on."""

    def __init__(self, points: Points, parts: Sequence[Tensor], place: Place) -> None:
        self._points, self._parts, self._place = points, parts, place
        self._products = 0

    def __iter__(self) -> Iterator[Any]:
        self._products += 1
        for batch in _batches(self._points, self._parts):
            self._place.progress("probing the blocks", min(self._products, LIMIT), LIMIT)
            yield batch


def _batches(points: Points, parts: Sequence[Tensor]) -> Iterator[Any]:
    return (points.take(part) for part in parts)


def _damping(setting: Setting, last: Attribution) -> float | None:
    """The estimator's own, the mean where blocks differ; without a curvature, that of an exact one."""
    if ESTIMATORS[setting.config.scoring.estimator].damping == "one":
        known = setting.horizon is not None
        return damping_of(setting.config, "dense", None, setting.horizon).resolve(0.0) if known else None
    return fmean(found.damping for found in last.diagnostics.values())
