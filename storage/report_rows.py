"""The proposed points as JSON inside the page: columns, not rows, words by number, four digits of every number.

100,000 points are a few megabytes so. What costs more, pictures and texts, is there for the first points alone.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pyarrow as pa
from markupsafe import Markup

from storage.files import JSON
from storage.report_parts import Detail, Query, Sample, Tokens

Kind: TypeAlias = Literal["id", "word", "number"]


@dataclass(frozen=True)
class Column:
    """A column of the table of points: its name, heading, unit, what it means, and how it is written."""

    name: str
    title: str
    kind: Kind
    unit: str = ""
    meaning: str = ""


COLUMNS = (
    Column("point_id", "point", "id"),
    Column("action", "action", "word"),
    Column("reason", "why", "word", meaning="the policies that named the point"),
    Column("group", "group", "word", meaning="that the data set puts the point in"),
    Column("label", "label", "word", meaning="in force"),
    Column("given", "given label", "word", meaning="of a point relabelled earlier: what the data set says"),
    Column("suggested_label", "suggested label", "word", meaning="the most likely true label"),
    Column("posterior", "label is wrong", "number", "probability"),
    Column("influence", "influence", "number", "nats", "on the mean of the queries, ± its standard error"),
    Column("influence_se", "error", "number", "nats"),
    Column("self_influence", "self-influence", "number", "nats · points"),
    Column("score", "score", "number", meaning="of the first policy that named the point; the details name its column"),
    Column("threshold", "threshold", "number", meaning="what the score was compared with"),
)

OF_LABELS = ("label", "suggested_label", "posterior")
OF_SOME = ("group", "given")


def script_json(value: JSON) -> Markup:
    """JSON that may stand in a script element: nothing in it ends the element or opens another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, so that U+2028 is escaped too
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def embedded(points: pa.Table, details: Sequence[Detail], queries: Mapping[str, Query]) -> Markup:
    """Everything that the page's script shows of the points.

    Args:
        points: With the names of `COLUMNS`, in the order to be read.
        details: Of the first points.
        queries: Those that the details name, by id.
    """
    index = {query: place for place, query in enumerate(queries)}
    return script_json(
        {
            "rows": points.num_rows,
            "columns": [_column(column, points[column.name]) for column in COLUMNS if _holds(points, column.name)],
            "details": [
                {
                    **_sample(detail.sample),
                    "evidence": list(detail.evidence),
                    "pulls": [[index[pull.query_id], _rounded(pull.influence)] for pull in detail.pulls],
                    **_tokens(detail.tokens),
                }
                for detail in details
            ],
            "queries": [{"id": name, "label": one.label, **_sample(one.sample)} for name, one in queries.items()],
        }
    )


def _holds(points: pa.Table, name: str) -> bool:
    """Whether the page shows a column: those of labels, groups and given labels only where any point has one."""
    known = points[name].null_count < len(points)
    return known or name not in (*OF_LABELS, *OF_SOME) or (name in OF_LABELS and not len(points))


def _column(column: Column, values: pa.ChunkedArray) -> dict[str, JSON]:
    said: dict[str, JSON] = {
        "name": column.name,
        "title": column.title,
        "kind": column.kind,
        "unit": column.unit,
        "meaning": column.meaning,
    }
    match column.kind:
        case "word":
            codes = values.cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()
            return said | {"words": codes.dictionary.to_pylist(), "values": codes.indices.to_pylist()}
        case "id":
            return said | {"values": values.cast(pa.string()).to_pylist()}  # a 64-bit integer is no JavaScript number
        case "number":
            return said | {"values": [_rounded(value) for value in values.to_pylist()]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _tokens(tokens: Tokens | None) -> dict[str, Any]:
    if tokens is None:
        return {}
    return {"tokens": [[word, _rounded(value)] for word, value in tokens.words], "rest": _rounded(tokens.rest)}


def _sample(sample: Sample) -> dict[str, Any]:
    shown: dict[str, Any] = {"text": sample.text} if sample.text else {}
    return shown | ({"png": base64.b64encode(sample.png).decode()} if sample.png else {})
