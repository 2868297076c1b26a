"""What `tamis check` finds out before a cycle spends anything: one line for each thing that must hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from flows.asking import at_a_time, has_classes, inputs_of, task_of
from flows.config import Config
from flows.dataset import digest, manifest_of, read_sets
from flows.errors import BadInput
from flows.estimators import approximation
from flows.facets import facets_of
from flows.findings import Finding
from flows.protection import check_protected, vanished
from flows.ranks.blocks import chosen_blocks, left_out, measure_energies
from flows.ranks.device import CPU, device_of
from flows.ranks.points import Points
from flows.ranks.positions import has_positions
from flows.ranks.probe import rehearse
from flows.ranks.rank import Alone
from flows.ranks.split import owned
from flows.relabeling import check_relabeling
from flows.sections.launching import nodes_of
from flows.tokens import check_tokens
from flows.trust import described
from flows.without_classes import refuse_settings
from flows.workload import Batches, PointSet, Workload, check_losses, collate_of, for_folds, load_workload, seeded_model
from influence import Blocks, Share, blocks, position_counts
from influence.blocks import Block
from influence.curvature.dense import LARGEST
from influence.errors import InfluenceError
from influence.gradients import head_outputs
from influence.objective import check_cross_entropy
from influence.reader import Reader
from influence.tokens import Tokens
from influence.turnover import TurnOver
from storage.errors import StorageError

SAMPLE = 32


class _Checker:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.workload: Workload
        self.model: nn.Module
        self.chosen: Blocks

    def load(self) -> str:
        self.workload = load_workload(self.config)
        refuse_settings(self.config, self.workload)
        for_folds(self.workload, self.config.training)  # refuses a recipe that no model can be trained by
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
        if has_classes(self.workload) and len(sets.train) <= self.config.scoring.neighbours:
            raise BadInput(f"{len(sets.train)} train points: scoring.neighbours = {self.config.scoring.neighbours}")
        if len(sets.query) < 2:
            raise BadInput("one query point has no standard error: give at least two")
        check_protected(self.config.pruning, sets.train, self.config.workspace)
        lost = vanished(self.config.pruning, sets.train)
        facets_of(self.workload)
        return (
            f"{len(sets.train):,} train, {len(sets.query):,} query, {len(sets.holdout):,} holdout points; "
            "ids unique, sets disjoint" + f"; the data {lost}" * bool(lost)
        )

    def losses(self) -> str:
        self.model.eval()
        with torch.no_grad():
            for points in (self.workload.points(), self.workload.queries(), self.workload.holdout()):
                self._one_batch(points)
        if self.config.pruning.mislabeled_action == "relabel":
            check_relabeling(self.workload, self.model, self.workload.points())
        return "one finite loss per point, the cross-entropy of the logits" + ", mean over its tokens" * (
            not has_classes(self.workload)
        )

    def _one_batch(self, points: PointSet) -> None:
        rows = torch.arange(min(at_a_time(self.workload, SAMPLE), len(points)))
        batch = Batches(points, collate_of(self.workload)).take(rows)
        logits = self.workload.logits(self.model, batch)
        labels = task_of(self.workload).labels(batch)
        if has_classes(self.workload):
            self._one_label_each(points, rows, logits, labels)
            self._asked_later(rows, points, batch)
        else:
            _targets_at_each_position(rows, logits, labels)
        losses = self.workload.loss(self.model, batch)
        check_losses(losses, rows, points.ids)
        check_cross_entropy(losses, logits, labels)
        with TurnOver(self.model, self.config.training.turn_over, seed=0).own(rows):
            self.workload.loss(self.model, batch)

    def _one_label_each(self, points: PointSet, rows: Tensor, logits: Tensor, labels: Tensor) -> None:
        if logits.ndim != 2 or len(logits) != len(rows):
            raise BadInput(f"logits(model, batch) gave shape {list(logits.shape)} for {len(rows)} points: give [B, C]")
        classes = logits.shape[1]
        outside = [label for label in points.labels if not 0 <= int(label) < classes]
        if outside:
            raise BadInput(f"label {outside[0]} is outside 0 … {classes - 1}, the classes of the logits")
        if labels.tolist() != [int(points.labels[row]) for row in rows.tolist()]:
            raise BadInput("labels(batch) differ from the data set's `labels`: both must give the given label")

    def _asked_later(self, rows: Tensor, points: PointSet, batch: Any) -> None:
        """What the suspicion is made of is asked after the training, and would fail there."""
        inputs = inputs_of(self.workload, batch)
        if inputs.ndim != 2 or len(inputs) != len(rows):
            raise BadInput(f"inputs(batch) gave shape {list(inputs.shape)} for {len(rows)} points: give [B, d]")
        light, recipe = for_folds(self.workload, self.config.training)
        if light is not self.workload:
            check_losses(light.loss(seeded_model(light, recipe.seed), batch), rows, points.ids)

    @cached_property
    def points(self) -> Points:
        return Points("train", self.workload.points(), self.workload)

    def blocks(self) -> str:
        scoring = self.config.scoring
        energies = measure_energies(self.model, self.workload, self.points, Alone(lambda *_: None))
        self.chosen = chosen = chosen_blocks(self.model, self.workload, scoring.blocks, energies)
        if scoring.placement == "split":
            owned(chosen, Share(0, scoring.ranks))  # refuses more ranks than there are blocks
        approximation(self.config, chosen, Share())  # refuses more parameters than it takes
        head = blocks.head(self.model)
        if scoring.exact_head and head.parameters > LARGEST:
            raise BadInput(
                f"the head {head.name} has {head.parameters:,} parameters, its exact Gauss-Newton takes {LARGEST:,}: "
                "set scoring.exact_head = false"
            )
        both = chosen if head in chosen or not scoring.exact_head else (*chosen, head)
        few = range(min(at_a_time(self.workload, SAMPLE), len(self.points)))
        with Reader(self.model, task_of(self.workload), both) as reader:
            logits = reader.losses(self.points.take(few)).logits
            if scoring.exact_head:
                _check_head(reader, head, logits)
            if has_positions(self.config, self.workload):
                counts = position_counts(reader.losses(self.points.take(range(1))).losses, chosen)
                check_tokens(self.workload, self.points.ids[0], counts)
        without = left_out(self.model, self.workload, scoring.blocks)
        said = "; ".join(filter(None, (described(blocks.summarize(self.model, chosen, energies)), without)))
        return said + " (chosen anew after training)" * (scoring.blocks.energy is not None)

    def probe(self) -> str:
        if not self.config.scoring.probe:
            return "off: nothing will tell whether the blocks can be trusted"
        model = seeded_model(self.workload, self.config.training.seed)
        rehearse(model, self.workload, self.chosen, self.points)
        return "the blocks can be compared with all parameters"

    def device(self) -> str:
        config, nodes = self.config, nodes_of(self.config.launch.launcher)
        found = device_of(config.launch, max(config.training.ranks, config.scoring.ranks) // nodes - 1)
        return f"ranks compute on {'the CPU' if found == CPU else 'a GPU each'}"


def _check_head(reader: Reader[Any], head: Block, logits: Tensor) -> None:
    try:
        head_outputs(reader.source, head, logits)
    except InfluenceError as error:
        raise BadInput(f"{error}: set scoring.exact_head = false") from error


def _targets_at_each_position(rows: Tensor, logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 3 or len(logits) != len(rows) or targets.shape != logits.shape[:2]:
        raise BadInput(
            f"logits(model, batch) gave shape {list(logits.shape)} and targets(batch) {list(targets.shape)} for "
            f"{len(rows)} points: give [B, T, V] and [B, T]"
        )
    Tokens(logits, targets)  # refuses a target outside the vocabulary, and a text without one


def check(config: Config) -> list[Finding]:
    """Check a workload against its configuration; what cannot be checked because of another fault is left out."""
    checker = _Checker(config)
    steps: dict[str, tuple[set[str], Callable[[], str]]] = {  # each with those that must have passed
        "workload": (set(), checker.load),
        "model": ({"workload"}, checker.build),
        "sets": ({"workload", "model"}, checker.sets),
        "losses": ({"workload", "model"}, checker.losses),
        "blocks": ({"sets", "losses"}, checker.blocks),
        "probe": ({"blocks"}, checker.probe),
        "device": (set(), checker.device),
    }
    findings: list[Finding] = []
    for name, (needs, step) in steps.items():
        if needs <= {finding.name for finding in findings if finding.ok}:
            try:
                findings.append(Finding(name, True, step()))
            except (BadInput, StorageError, InfluenceError) as error:
                findings.append(Finding(name, False, str(error)))
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
