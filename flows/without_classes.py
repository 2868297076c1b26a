"""Settings that need classes, refused before anything is computed where a workload has none: a language model."""

from __future__ import annotations

from flows.asking import TEXTS, has_classes
from flows.config import Config
from flows.errors import BadInput
from flows.workload import Workload


def refuse_settings(config: Config, workload: Workload) -> None:
    """Say in one line all that is to be set otherwise.

    Raises:
        BadInput: Something is.
    """
    if has_classes(workload):
        return
    scoring, pruning = config.scoring, config.pruning
    others: list[str] = [policy for policy in pruning.policies if policy != "mislabeled"]
    wrong = {
        f"pruning.policies = {_listed(others or ['harmful'])}": "mislabeled" in pruning.policies,
        'pruning.mislabeled_action = "remove"': pruning.mislabeled_action == "relabel",
        f"scoring.chunk = {TEXTS} or less": scoring.chunk > TEXTS,  # the curvature pass reads a chunk at once
        "scoring.exact_head = false": scoring.exact_head,
        'scoring.fisher = "sampled", or "empirical"': scoring.fisher == "exact",
        "no training.prune_while_learning": config.training.prune_while_learning is not None,
        "pruning.class_minimum_kept = 0": bool(pruning.class_minimum_kept),
    }
    if needed := [remedy for remedy, is_wrong in wrong.items() if is_wrong]:
        raise BadInput(
            f"workload {config.workload.entry} has no classes, which other settings need: set {', '.join(needed)}"
        )


def _listed(policies: list[str]) -> str:
    return "[" + ", ".join(f'"{policy}"' for policy in policies) + "]"
