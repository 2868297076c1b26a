"""The proposed points as the report shows them: their scores, and of the first of them pictures and evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.asking import labels_of
from flows.preview import SHOWN, Preview
from flows.workload import Workload
from storage import selection
from storage.points import PointId
from storage.policies import COPY_OF, reason_code
from storage.proposals import Proposal
from storage.query_scores import read_queries
from storage.report_parts import Detail, Pull, Query, Sample, SuspiciousQuery, Tokens

DETAILED = 500
SAMPLE_BYTES = 6_000_000
"""That pictures and texts may take of a report."""
TEXT = 1000
TOKENS, TOKEN = 1000, 50
"""That are shown of a point, and letters of each, at most."""
UNTOLD = "where in its text its influence lies is not known: that was told of the cycle's first proposal alone"
SUSPICIOUS = 20
SCORES = ("label", "suggested_label", "influence", "influence_se", "self_influence", "posterior")
EXTRA = ("predicted", "loss", "suspicion", "memorization", "top_queries")


@dataclass(frozen=True)
class Samples:
    """What the workload shows of its points and queries.

    Attributes:
        queries: Ids and labels of the query set, by text.
        positions: Influence by position of some points, and the rest of it.
        asked: Whether a preview was made, which tells it where it still can.
    """

    workload: Any
    queries: Mapping[str, tuple[int | str, str]]
    positions: Mapping[PointId, tuple[list[float], float]] = field(default_factory=dict)
    asked: bool = False

    @classmethod
    def of(cls, workload: Workload, preview: Preview | None = None) -> Samples:
        """Of a workload that is in order, with what the preview has written of positions."""
        file = preview and preview.positions
        queries, told = workload.queries(), [] if file is None else pq.read_table(file).to_pylist()
        labels = labels_of(queries)
        said = [""] * len(queries) if labels is None else [str(int(label)) for label in labels]
        return cls(
            workload,
            {str(name): (name, label) for name, label in zip(list[int | str](queries.ids), said)},
            {row["point_id"]: (row["positions"], row["rest"]) for row in told},
            hasattr(workload, "tokens") and preview is not None and preview.file is not None,
        )

    def point(self, point_id: int | str) -> Sample:
        """A point, by the workload's optional `describe`."""
        return self._shown("describe", point_id)

    def tokens(self, point_id: int | str) -> Tokens | None:
        """A point's tokens, by the workload's optional `tokens`, with the influence of each, where it was told."""
        if point_id not in self.positions:
            return None
        influence, rest = self.positions[point_id]
        words = [_printable(word)[:TOKEN] for word in self.workload.tokens(point_id)]
        return Tokens(list(zip(words, influence, strict=True))[:TOKENS], rest + sum(influence[TOKENS:]))

    def query(self, query_id: str) -> Query:
        """A query, by the workload's optional `describe_query`."""
        if query_id not in self.queries:
            return Query("", Sample("no longer in the query set"))
        name, label = self.queries[query_id]
        return Query(label, self._shown("describe_query", name))

    def _shown(self, method: str, name: int | str) -> Sample:
        describe = getattr(self.workload, method, None)
        shown: object = describe(name) if describe else ""
        if isinstance(shown, bytes):
            return Sample(png=shown)
        text = _printable(shown)
        return Sample(text[:TEXT] + "…" * (len(text) > TEXT))


def _printable(text: object) -> str:
    return str(text).encode(errors="replace").decode()  # half a surrogate pair cannot be written


def proposed_points(folder: Path, proposal: Proposal, given: Mapping[PointId, int], known: pa.Table) -> pa.Table:
    """The rows of a proposal with their scores, in the order of their rank.

    Args:
        folder: Of the scores.
        proposal: The proposal.
        given: Labels of the points relabelled earlier.
        known: The manifest's table, for the groups.

    Returns:
        Also with `repeated`, what a copy is a copy of, and `given`, which is null where the label never changed.
    """
    rows = proposal.rows.sort_by("point_id")
    reasons = rows["reason"].to_pylist()
    codes, repeated = list(map(reason_code, reasons)), [reason.partition(COPY_OF)[2] or None for reason in reasons]
    rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", pa.array(codes, pa.string()))
    rows = rows.append_column("repeated", pa.array(repeated, pa.string()))
    rows = rows.append_column("given", pa.array([given.get(point) for point in proposal.points], pa.int32()))
    place = pc.index_in(rows["point_id"].combine_chunks(), value_set=known["point_id"].combine_chunks())
    rows = rows.append_column("group", known["group"].combine_chunks().take(place))
    scores = selection.rows_of(folder, proposal.points, SCORES)
    for name in SCORES:
        rows = rows.append_column(name, scores[name])
    return rows.sort_by([("rank", "ascending"), ("point_id", "ascending")])


def details(folder: Path, points: pa.Table, samples: Samples) -> tuple[list[Detail], dict[str, Query]]:
    """What else is shown of the first points, until the pictures and texts would take too much, and their queries.

    Args:
        folder: Of the scores.
        points: As `proposed_points` gives them.
        samples: Of the workload.
    """
    first = points.slice(0, DETAILED).to_pylist()
    found = selection.rows_of(folder, [row["point_id"] for row in first], EXTRA).to_pylist()
    extra = {row["point_id"]: row for row in found}
    shown, queries, taken = list[Detail](), dict[str, Query](), 0
    for place, row in enumerate(first):
        more = extra[row["point_id"]]
        pulls = [Pull(one["query_id"], one["influence"]) for one in more["top_queries"]]
        new = {pull.query_id: samples.query(pull.query_id) for pull in pulls if pull.query_id not in queries}
        sample, tokens = samples.point(row["point_id"]), samples.tokens(row["point_id"])
        taken += sample.size + sum(query.sample.size for query in new.values()) + (tokens.size if tokens else 0)
        if taken > SAMPLE_BYTES:
            break
        queries |= new
        untold = samples.asked and tokens is None and place < SHOWN
        shown.append(Detail(sample, [*_evidence(row, more), *[UNTOLD] * untold], pulls, tokens))
    return shown, queries


def _evidence(row: Mapping[str, Any], more: Mapping[str, Any]) -> Iterator[str]:
    for one in row["evidence"]:
        yield f"{one['policy']}: {one['column']} is {one['value']:.4g}, threshold {one['threshold']:.4g}"
    if row["repeated"] is not None:
        yield f"an exact copy of point {row['repeated']}, which stays"
    if row["given"] is not None:
        yield f"given as {row['given']}; relabelled earlier, and {row['label']} is in force"
    predicts = "" if more["predicted"] is None else f"the model predicts {more['predicted']}; "
    yield f"{predicts}loss {more['loss']:.4g} nats; {more['memorization']}"
    if more["suspicion"] is not None:
        yield f"suspicion {more['suspicion']:.4g} (log-odds that the label is wrong)"


def suspicious(folder: Path, proposal: Proposal, samples: Samples) -> Sequence[SuspiciousQuery]:
    """The queries with the largest loss, the largest first; ties by id."""
    queries = read_queries(folder)
    if queries is None:
        return []
    harmed = _harmed(selection.rows_of(folder, proposal.points, ["top_queries"]))
    worst = queries.sort_by([("loss", "descending"), ("query_id", "ascending")]).slice(0, SUSPICIOUS)
    return [
        SuspiciousQuery(
            query_id=row["query_id"],
            label="" if row["label"] is None else str(row["label"]),
            predicted="" if row["predicted"] is None else str(row["predicted"]),
            loss=row["loss"],
            harmed_by=harmed.get(row["query_id"], 0),
            sample=samples.query(row["query_id"]).sample,
        )
        for row in worst.to_pylist()
    ]


def _harmed(points: pa.Table) -> dict[str, int]:
    """How many of the points have a query among those they harm most, by query."""
    pulls = pc.list_flatten(points["top_queries"].combine_chunks())
    harmed = pulls.filter(pc.less(pulls.field("influence"), 0)).field("query_id")
    return {one["values"]: one["counts"] for one in harmed.value_counts().to_pylist()}
