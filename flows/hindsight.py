"""A forecast kept until a cycle has shown what it really took, and the two side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version

from pydantic import TypeAdapter

from flows.config import Config
from flows.forecast import Forecast
from flows.retraining import ARMS, FIRST_ROUND, Retrained
from flows.scoring import Scored
from flows.spent import Spent
from flows.stages import Cycle
from flows.training import Trained
from storage.files import JSON, atomic_write_json, read_json, sha256_json, size_of

FILE = "forecast.json"


@dataclass(frozen=True)
class Compared:
    """One thing that was foretold, and what it came to: seconds, or bytes."""

    what: str
    unit: str
    foretold: float
    measured: float

    @property
    def said(self) -> str:
        """Both, and the measured in units of the foretold."""
        shown = (f"{value:,.1f} s" if self.unit == "s" else f"{value / 1e6:,.1f} MB" for value in self._both)
        return f"{' foretold, '.join(shown)} measured ({self.measured / self.foretold:.2f} x)"

    @property
    def _both(self) -> tuple[float, float]:
        return self.foretold, self.measured


def keep(config: Config, forecast: Forecast) -> None:
    """Keep a forecast in the workspace, for cycles with these settings."""
    atomic_write_json(config.workspace / FILE, {"settings": _settings(config), "forecast": asdict(forecast)})


def kept(config: Config) -> Forecast | None:
    """The forecast of these settings, if `tamis check` made one."""
    path = config.workspace / FILE
    record = read_json(path) if path.exists() else {}
    if record.get("settings") != _settings(config):
        return None
    found: Forecast = TypeAdapter(Forecast).validate_python(record["forecast"])
    return found


def compare(cycle: Cycle, trained: Trained, scored: Scored, retrained: Retrained | None) -> tuple[Compared, ...]:
    """What was foretold of the cycle, and what it came to; nothing of a stage that an earlier run had begun."""
    forecast = kept(cycle.config)
    if forecast is None:
        return ()
    spent = {"train": trained.spent, "score": scored.spent}
    foretold = ARMS, cycle.config.guardrail.seeds
    complete = retrained is not None and (tuple(retrained.folders), len(retrained.seeds)) == foretold
    if retrained is not None and complete:
        spent["retrain"] = retrained.spent
    anew = {stage: found for stage, found in spent.items() if found is not None and found.anew}
    rows = [
        Compared(f"time to {stage}", "s", forecast.seconds[stage], _seconds(cycle, stage))
        for stage in anew
        if stage in forecast.seconds
    ]
    rows += _memory(forecast, anew)
    if complete:
        left = sum(size_of(cycle.folder / part) for part in ("checkpoints", "scores"))
        rows.append(Compared("checkpoints and scores", "bytes", forecast.kept, left))
    return tuple(rows)


def _memory(forecast: Forecast, anew: Mapping[str, Spent]) -> list[Compared]:
    held = (("memory", forecast.memory, "memory"), ("memory on the GPU", forecast.device_memory, "device_memory"))
    return [
        Compared(f"{name} of a rank that {program}s", "bytes", foretold[program], getattr(anew[program], attribute))
        for name, foretold, attribute in held
        for program in foretold
        if program in anew
    ]


def _seconds(cycle: Cycle, stage: str) -> float:
    """Of a stage, in all its rounds."""
    rounds = range(FIRST_ROUND, cycle.config.guardrail.seeds + 1)
    names = [f"{stage}-{count}" for count in rounds] if stage == "retrain" else [stage]
    return sum(float(read_json(cycle.folder / "stages" / f"{name}.json")["seconds"]) for name in names)


def _settings(config: Config) -> str:
    dump: dict[str, JSON] = config.model_dump(mode="json", by_alias=True)
    seeds = config.guardrail.seeds
    of = (dump["workload"], dump["training"], dump["scoring"], dump["launch"])
    return sha256_json([version("tamis"), *of, seeds])
