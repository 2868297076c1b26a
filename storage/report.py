"""The report a reviewer reads: one HTML file that needs nothing else.

Style, script, points and pictures are inside, so it opens from a mail, from disk or in MLflow's sandboxed viewer. Every
value that comes from data is escaped, by the template or as JSON. A content policy lets nothing be loaded or sent, and
lets no other script or style take effect than these two, which it names by their hashes.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import pyarrow as pa
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from storage.report_parts import Arm, Check, Confusion, Detail, Policy, Query, Slice, SuspiciousQuery, Tally
from storage.report_rows import embedded
from storage.score_store import SIGN, UNIT


@dataclass(frozen=True)
class ReportData:
    """All that the report shows; what is empty is left out.

    Args:
        cycle: Its number.
        dataset: Name of the data set.
        dataset_sha256: Hash of the view the cycle started from.
        proposal: The full hash.
        state: Where the cycle stands.
        decision: One sentence: what was decided and why.
        in_train: Points now in training.
        points: The proposed points in the order to be read, with the columns of `storage.report_rows.COLUMNS`.
        details: Of the first of them.
        queries: Those that the details name, by id.
        policies: Why.
        trust: Facts on how sure this is: the noise rate, the probe …
        changes: Facts on what changed since the last cycle.
        foretold: What each method foretold of the query set, beside the truth once there is one.
        costs: Facts on what was spent and what is saved.
        facts: Facts on how the scores were made.
        classes: Counts by label in force.
        groups: Counts by group.
        slices: Of the points in training, the most harmful sum first.
        tested: Slices that the tests were corrected for.
        confusion: Of the given with the suggested labels, where proposed points have both.
        arms: Results on the holdout set; empty before they are known.
        checks: The conditions of promotion; empty before they are known.
        suspicious: Queries that may be wrong themselves, the most suspicious first.
        commands: What to type next, e.g. to approve or reject.
        tag: The value of the MLflow tag that approves; empty where there is nothing to approve.
        figures: PNG by title.
    """

    cycle: int
    dataset: str
    dataset_sha256: str
    proposal: str
    state: str
    decision: str
    in_train: int
    points: pa.Table
    details: Sequence[Detail] = ()
    queries: Mapping[str, Query] = field(default_factory=dict)
    policies: Sequence[Policy] = ()
    trust: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, str] = field(default_factory=dict)
    foretold: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    classes: Sequence[Tally] = ()
    groups: Sequence[Tally] = ()
    slices: Sequence[Slice] = ()
    tested: int = 0
    confusion: Confusion | None = None
    arms: Sequence[Arm] = ()
    checks: Sequence[Check] = ()
    suspicious: Sequence[SuspiciousQuery] = ()
    commands: Sequence[str] = ()
    tag: str = ""
    figures: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def proposed(self) -> int:
        """Number of points proposed."""
        return int(self.points.num_rows)

    @property
    def actions(self) -> dict[str, int]:
        """How many of them by action, the most frequent first."""
        counts = self.points["action"].value_counts().to_pylist()
        return {one["values"]: one["counts"] for one in sorted(counts, key=lambda one: -one["counts"])}


def render(data: ReportData) -> str:
    """The report as one HTML text."""
    style, script = _part("report.css"), _part("report.js")
    points = embedded(data.points, data.details, data.queries)
    policy = f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}"
    return _template().render(
        data=data,
        sign=SIGN,
        unit=UNIT,
        points=points,
        style=Markup(style),
        script=Markup(script),
        content_policy=f"{policy}; base-uri 'none'; form-action 'none'",
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["png"] = _data_uri
    environment.filters["number"] = _number
    return environment.from_string(_part("report.html.j2"))


def _part(name: str) -> str:
    return files("storage").joinpath("templates", name).read_text(encoding="utf-8").rstrip()


def _source(text: str) -> str:
    """How a content policy names the one inline style or script that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
