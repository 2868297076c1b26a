"""What the proof plants: data sets with known errors, each with the shipped settings of its workload."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parents[2] / "deploy"
WHOLE_TEST_SET = {"points": 10_000, "queries": 5_000, "holdout": 5_000}


@dataclass(frozen=True)
class Setting:
    """A workload with errors planted in it.

    Attributes:
        name: Of the section in the page.
        workload: Folder in deploy/ whose TOML it changes.
        options: Of the workload, in place of the shipped ones.
        pruning: Of the section, beside the shipped ones.
    """

    name: str
    workload: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pruning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trainings(self) -> int:
        """Of every set of points that is removed beside the cycle's own arms."""
        return 3 if self.workload == "digits" else 1

    @property
    def key(self) -> str:
        """Names the files of its cells."""
        changed = [*sorted(self.options.items()), *(pair for pair in self.pruning.items() if pair[0] != "policies")]
        return "-".join(
            [self.workload, *self.pruning.get("policies", ()), *(f"{key}={value}" for key, value in changed)]
        )


def _settings(workload: str, **options: Any) -> tuple[Setting, ...]:
    planted: dict[str, dict[str, Any]] = {
        "0 % flips": {"rate": 0.0},
        "5 % flips": {"rate": 0.05},
        "10 % flips": {"rate": 0.1},
        "20 % flips": {"rate": 0.2},
        "10 % class-dependent": {"corruption": "class_dependent", "rate": 0.1},
        "20 % class-dependent": {"corruption": "class_dependent", "rate": 0.2},
        "10 % flips, 5 % of the queries too": {"rate": 0.1, "query_rate": 0.05},
        "10 % systematic": {"corruption": "systematic", "rate": 0.1},
    }
    return tuple(Setting(name, workload, {**options, **errors}) for name, errors in planted.items())


SETTINGS = {
    "digits": _settings("digits"),
    "Fashion-MNIST": _settings("fashion_mnist", **WHOLE_TEST_SET),
}


def _redundant(workload: str, **options: Any) -> tuple[Setting, ...]:
    """Nothing is wrong: a tenth are copies, or as much as a user lets go, with the budgets raised to let it."""
    policy = {"policies": ["redundant"]}
    raised = {"redundant_share": 0.2, "budget": 0.2}
    return (
        Setting("10 % exact copies", workload, {**options, "rate": 0.0, "copies": 0.1}, policy),
        Setting("nothing planted", workload, {**options, "rate": 0.0}, policy | raised),
    )


REDUNDANT = {
    "digits": _redundant("digits"),
    "Fashion-MNIST": _redundant("fashion_mnist", **WHOLE_TEST_SET),
}


def write_toml(setting: Setting, seed: int, folder: Path) -> Path:
    """The shipped TOML with other workload options and seed, without Prefect, on one rank: nothing else differs."""
    settings = tomllib.loads((DEPLOY / setting.workload / "tamis.toml").read_text())
    options = settings["workload"].pop("options") | setting.options | {"seed": seed}
    settings |= {"orchestrator": "none", "scoring": settings.get("scoring", {}) | {"ranks": 1}}
    settings["training"] = settings.get("training", {}) | {"seed": seed, "ranks": 1}
    settings["pruning"] = settings.get("pruning", {}) | dict(setting.pruning)
    folder.mkdir(parents=True, exist_ok=True)
    toml = folder / "tamis.toml"
    toml.write_text(_toml(settings | {"workload.options": options}))
    return toml


def _toml(settings: Mapping[str, Any]) -> str:
    """Keys, then sections of plain values, whose JSON is TOML."""
    keys = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, dict)]
    for name, section in settings.items():
        if isinstance(section, dict):
            keys += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    return "\n".join(keys) + "\n"
