"""The report a reviewer reads: one HTML file that needs nothing else.

Style, script and pictures are inside, so it opens from a mail, from disk or in MLflow's sandboxed viewer. Every value
that comes from data is escaped by the template, and a content policy lets nothing be loaded or sent.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from storage.points import PointId
from storage.score_store import SIGN, UNIT


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """One arm on the holdout set: points trained on, optimizer steps, seeds; loss in nats, accuracy as a share."""

    name: str
    points: int
    steps: int
    seeds: int
    loss: Interval
    accuracy: Interval | None


@dataclass(frozen=True)
class Check:
    """One condition of promotion: it passes if `bound` is below `limit`, both in nats."""

    name: str
    bound: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class ReportPoint:
    """One proposed point; score and threshold are those of the first policy that chose it, the picture a PNG."""

    point_id: PointId
    reason: str
    score: float
    threshold: float
    label: str
    suggested_label: str = ""
    influence: float | None = None
    self_influence: float | None = None
    suspicion: float | None = None
    memorization: str = ""
    text: str = ""
    png: bytes | None = None


@dataclass(frozen=True)
class ReportData:
    """All that the report shows.

    Args:
        cycle: Its number.
        dataset: Name of the data set.
        dataset_sha256: Hash of the view the cycle started from.
        proposal: The full hash.
        state: Where the cycle stands.
        decision: One sentence: what was decided and why.
        proposed: Number of points that the proposal would remove; `points` may be the first of them.
        summary: Facts in order: points scored, proposed, the estimator, the damping …
        arms: Results on the holdout set; empty before they are known.
        checks: The conditions of promotion; empty before they are known.
        points: The proposed points, in the order to be read.
        commands: What to type next, e.g. to approve or reject.
        figures: PNG by title.
    """

    cycle: int
    dataset: str
    dataset_sha256: str
    proposal: str
    state: str
    decision: str
    proposed: int
    summary: Mapping[str, str]
    arms: Sequence[Arm] = ()
    checks: Sequence[Check] = ()
    points: Sequence[ReportPoint] = ()
    commands: Sequence[str] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)


def render(data: ReportData) -> str:
    """The report as one HTML text."""
    return _template().render(data=data, sign=SIGN, unit=UNIT)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["png"] = _data_uri
    environment.filters["number"] = _number
    return environment.from_string(files("storage").joinpath("templates/report.html.j2").read_text())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
