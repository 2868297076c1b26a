"""Slices of the points in training by label, group, copies and what else the workload tells of them; SQL, out of core.

A slice is what some points have in common: one value of a text, a fifth of a number's range, one of the words that a
point holds. Which slices there are never depends on influence, so that tests of their sums need no correction for that:
of texts the most frequent values are taken, of words those that lean most towards a label, and of either as many as
`MOST`; those of fewer than `FEWEST` points, or that leave out fewer, are no slices.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.points import PointId
from storage.score_sql import Scores, open_scores, register_ids

MOST = 50
FEWEST = 10
CUTS = (0.2, 0.4, 0.6, 0.8)
KNOWN = ("label", "group", "copies")
"""Facets that need no workload."""

BASE = """
CREATE TEMP TABLE base AS
SELECT s.influence, s.point_id IN (FROM proposed) AS chosen, {label} AS label, {columns}
FROM scores s LEFT JOIN facets f USING (point_id) WHERE s.in_train
"""

COPIES = "count(*) OVER (PARTITION BY coalesce(s.copy_of, s.point_id)) - 1"

SUMS = (
    "count(*) AS points, sum(influence) AS total, var_samp(influence) AS variance, count(*) FILTER (chosen) AS chosen"
)

BOUNDED = "HAVING count(*) BETWEEN $fewest AND (SELECT count(*) FROM base) - $fewest"

VALUES = f"""
SELECT CAST({{facet}} AS VARCHAR) AS low, NULL AS high, {SUMS} FROM base
GROUP BY {{facet}} {BOUNDED} ORDER BY points DESC, low LIMIT $most
"""

RANGES = f"""
WITH cut AS (SELECT list_distinct(quantile_disc({{facet}}, $cuts)) AS edges FROM base)
SELECT {{low}} AS low, {{high}} AS high, {SUMS}
FROM base, cut
GROUP BY CASE WHEN {{facet}} IS NOT NULL THEN len(list_filter(edges, lambda edge: edge < {{facet}})) END
{BOUNDED} ORDER BY min({{facet}})
"""

# The log-odds of a word in the points of a label against the others, half a point added everywhere, over its error
WORDS = f"""
WITH held AS (SELECT influence, chosen, label, unnest(list_distinct({{facet}})) AS word FROM base),
pairs AS (SELECT word, label, count(*) AS a FROM held GROUP BY word, label),
of_label AS (SELECT label, count(*) AS n FROM base GROUP BY label),
of_word AS (SELECT word, count(*) AS w FROM held GROUP BY word {BOUNDED}),
cells AS (SELECT word, w, a + .5 AS a, w - a + .5 AS b, n - a + .5 AS c,
                 (SELECT count(*) FROM base) - n - (w - a) + .5 AS d
          FROM pairs JOIN of_word USING (word) JOIN of_label ON pairs.label IS NOT DISTINCT FROM of_label.label),
picked AS (SELECT word FROM cells GROUP BY word
           ORDER BY max((ln(a) - ln(b) - ln(c) + ln(d)) / sqrt(1 / a + 1 / b + 1 / c + 1 / d)) DESC, word LIMIT $most)
SELECT word AS low, NULL AS high, {SUMS} FROM held JOIN picked USING (word) GROUP BY word ORDER BY word
"""


@dataclass(frozen=True)
class Sums:
    """Over some points in training.

    Attributes:
        facet: Of what the slice is; empty for all points.
        low: The value, or the smallest of a range; None for points that have none.
        high: The largest of a range; None elsewhere.
        points: How many.
        total: Of their influence, nats.
        variance: Of the influence of one of them.
        chosen: Points that are proposed.
    """

    facet: str
    low: str | None
    high: str | None
    points: int
    total: float
    variance: float
    chosen: int


@dataclass(frozen=True)
class Sliced:
    """All points in training, and their slices."""

    whole: Sums
    slices: tuple[Sums, ...]


def sum_slices(folder: Path, facets: pa.Table, proposed: Collection[PointId]) -> Sliced:
    """Sum the influence of the points in training over every slice.

    Args:
        folder: Score shards.
        facets: point_id, then a column for each: texts, numbers, times, or lists of words.
        proposed: Points that are counted in each slice.
    """
    with open_scores(folder, ()) as scores:
        register_ids(scores, "proposed", proposed)
        places = [f"place_{at}" for at in range(1, facets.num_columns)]  # the user's names may differ in case alone
        scores.connection.register("facets", facets.rename_columns(["point_id", *places]))
        own = {
            name: (f"f.{place}", facets.schema.field(name).type) for name, place in zip(facets.column_names[1:], places)
        }
        kinds = _base(scores, own)
        [whole] = scores.connection.sql(f"SELECT {SUMS} FROM base").fetchall()
        slices = (one for at, (name, kind) in enumerate(kinds.items()) for one in _slices(scores, name, at, kind))
        return Sliced(_sums("", None, None, *whole), tuple(slices))


def _base(scores: Scores, own: dict[str, tuple[str, pa.DataType]]) -> dict[str, pa.DataType]:
    """Make the table that is summed over, with a column `facet_<place>` for each, and say of what kind each is."""
    label = "s.label" if "label" in scores.columns else "CAST(NULL AS INTEGER)"
    known = {"label": (label, pa.string())}
    if "group" in scores.columns:
        known["group"] = ('s."group"', pa.string())
    if "copy_of" in scores.columns:
        known["copies"] = (COPIES, pa.int64())
    both = known | own
    columns = ", ".join(f"{sql} AS facet_{at}" for at, (sql, _) in enumerate(both.values()))
    scores.connection.execute(BASE.format(label=label, columns=columns))
    return {name: kind for name, (_, kind) in both.items()}


def _slices(scores: Scores, name: str, at: int, kind: pa.DataType) -> Iterator[Sums]:
    facet, bounds = f"facet_{at}", dict[str, Any](fewest=FEWEST)
    if pa.types.is_list(kind):
        query, bounds["most"] = WORDS, MOST
    elif pa.types.is_string(kind) or pa.types.is_boolean(kind):
        query, bounds["most"] = VALUES, MOST
    else:
        query, bounds["cuts"] = RANGES, list(CUTS)
    shown = "format('{{:.4g}}', {0})" if pa.types.is_floating(kind) else "CAST({0} AS VARCHAR)"
    ends = {"low": shown.format(f"min({facet})"), "high": shown.format(f"max({facet})")}
    for row in scores.connection.execute(query.format(facet=facet, **ends), bounds).fetchall():
        yield _sums(name, *row)


def _sums(facet: str, low: str | None, high: str | None, points: int, *sums: float | None) -> Sums:
    total, variance, chosen = (one or 0.0 for one in sums)
    return Sums(facet, low, high, points, total, variance, int(chosen))
