"""What `tamis check` finds out before a cycle spends anything: one line for each thing that must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flows.config import Config
from flows.dataset import digest, manifest_of, read_sets
from flows.errors import BadInput
from flows.estimators import selections
from flows.workload import Batches, PointSet, Workload, check_losses, collate_of, load_workload, seeded_model
from influence import blocks
from influence.curvature.dense import LARGEST
from influence.errors import InfluenceError
from influence.gradients import check_cross_entropy, head_outputs
from influence.reader import Reader
from influence.reading import Task
from storage.errors import StorageError

SAMPLE = 32


@dataclass(frozen=True)
class Finding:
    """One line of a check."""

    name: str
    ok: bool
    text: str


class _Checker:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.workload: Workload
        self.model: nn.Module

    def load(self) -> str:
        self.workload = load_workload(self.config)
        return f"{self.config.workload.entry} loads"

    def build(self) -> str:
        self.model = seeded_model(self.workload, self.config.training.seed)
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{type(self.model).__name__} with {count:,} parameters"

    def sets(self) -> str:
        sets = read_sets(self.workload)
        if digest(manifest_of("train", self.workload.points())) != digest(sets.train):
            raise BadInput(
                "the train set reads differently the second time: a sample must be the same at every reading"
            )
        if len(sets.train) <= self.config.scoring.neighbours:
            raise BadInput(f"{len(sets.train)} train points: scoring.neighbours = {self.config.scoring.neighbours}")
        if len(sets.query) < 2:
            raise BadInput("one query point has no standard error: give at least two")
        known = set(sets.train.ids)
        if unknown := [point for point in self.config.pruning.protected if point not in known]:
            raise BadInput(f"pruning.protected: {unknown[:3]} not in the train set ({sets.train.id_kind} ids)")
        return (
            f"{len(sets.train):,} train, {len(sets.query):,} query, {len(sets.holdout):,} holdout points; "
            "ids unique, sets disjoint"
        )

    def losses(self) -> str:
        self.model.eval()
        with torch.no_grad():
            for points in (self.workload.points(), self.workload.queries(), self.workload.holdout()):
                self._one_batch(points)
        return "one finite loss per point, the cross-entropy of the logits"

    def _one_batch(self, points: PointSet) -> None:
        rows = torch.arange(min(SAMPLE, len(points)))
        batch = Batches(points, collate_of(self.workload)).take(rows)
        logits = self.workload.logits(self.model, batch)
        labels = self.workload.labels(batch)
        if logits.ndim != 2 or len(logits) != len(rows):
            raise BadInput(f"logits(model, batch) gave shape {list(logits.shape)} for {len(rows)} points: give [B, C]")
        classes = logits.shape[1]
        outside = [label for label in points.labels if not 0 <= int(label) < classes]
        if outside:
            raise BadInput(f"label {outside[0]} is outside 0 … {classes - 1}, the classes of the logits")
        if labels.tolist() != [int(points.labels[row]) for row in rows.tolist()]:
            raise BadInput("labels(batch) differ from the data set's `labels`: both must give the given label")
        losses = self.workload.loss(self.model, batch)
        check_losses(losses, rows, points.ids)
        check_cross_entropy(losses, logits, labels)

    def blocks(self) -> str:
        chosen = blocks.select(self.model, *selections(self.config.scoring.blocks))
        summary = blocks.summarize(self.model, chosen)
        head = blocks.head(self.model)
        exact = self.config.scoring.exact_head
        if exact and head.parameters > LARGEST:
            raise BadInput(
                f"the head {head.name} has {head.parameters:,} parameters, its exact Gauss-Newton takes {LARGEST:,}: "
                "set scoring.exact_head = false"
            )
        points = self.workload.points()
        batch = Batches(points, collate_of(self.workload)).take(torch.arange(min(SAMPLE, len(points))))
        task = Task[Any](self.workload.logits, self.workload.labels)
        with Reader(self.model, task, chosen if head in chosen or not exact else (*chosen, head)) as reader:
            logits = reader.losses(batch).logits
            if exact:
                head_outputs(reader.source, head, logits)
        return f"{', '.join(summary.names)}: {summary.parameters:,} parameters, {summary.share:.1%} of the model"


def check(config: Config) -> list[Finding]:
    """Check a workload against its configuration, up to the first thing that stops the others."""
    checker = _Checker(config)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("workload", checker.load),
        ("model", checker.build),
        ("sets", checker.sets),
        ("losses", checker.losses),
        ("blocks", checker.blocks),
    ]
    findings: list[Finding] = []
    for name, step in steps:
        try:
            findings.append(Finding(name, True, step()))
        except (BadInput, StorageError, InfluenceError) as error:
            findings.append(Finding(name, False, str(error)))
            if name in ("workload", "model", "losses"):
                break
    return findings


def require(config: Config) -> Workload:
    """The workload, if everything about it is in order.

    Raises:
        BadInput: All that is wrong.
    """
    findings = check(config)
    if wrong := [finding.text for finding in findings if not finding.ok]:
        raise BadInput("; ".join(wrong))
    return load_workload(config)
