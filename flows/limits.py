"""How much a proposal may take, as the selection is told it."""

from __future__ import annotations

from collections.abc import Mapping

from flows.sections.curation import PruningConfig
from storage.budgets import Budgets
from storage.points import Manifest, PointId


def budgets_of(
    pruning: PruningConfig,
    proposable: float,
    protected: frozenset[PointId],
    cooldown: frozenset[PointId],
    relabeled: Mapping[PointId, int],
) -> Budgets:
    """The budgets of a configuration.

    Args:
        pruning: Has the shares.
        proposable: Share of the train set that one proposal may take.
        protected: All ids that are.
        cooldown: Points not proposed again yet.
        relabeled: `given_labels`.
    """
    return Budgets(
        cycle=proposable,
        cumulative=pruning.cumulative_budget,
        per_class=pruning.class_budget,
        minimum_kept=pruning.minimum_kept,
        protected=protected,
        cooldown=cooldown,
        per_group=pruning.group_budget,
        minimum_per_class=pruning.class_minimum_kept,
        protected_groups=frozenset(pruning.protected_groups),
        relabeled=relabeled,
    )


def given_labels(manifest: Manifest, relabeled: Mapping[PointId, int]) -> dict[PointId, int]:
    """Of the points relabelled earlier, which scores know by the label in force."""
    rows = zip(manifest.ids, manifest.table["label"].to_pylist())
    return {point: label for point, label in rows if point in relabeled} if relabeled else {}
