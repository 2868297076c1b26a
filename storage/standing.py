"""Where one point stands among the scores of its cycle."""

from pathlib import Path
from typing import Any

from storage.points import PointId
from storage.score_sql import open_scores, register_ids

STANDING = """
SELECT *, (SELECT count(*) FROM scores WHERE in_train) AS of,
       (SELECT count(*) FROM scores s WHERE s.in_train
        AND (s.influence < r.influence OR s.influence = r.influence AND s.point_id < r.point_id)) + 1 AS rank
FROM scores r WHERE point_id IN (FROM wanted)
"""


def standing(folder: Path, point: PointId) -> dict[str, Any] | None:
    """All score columns of a point, with its `rank` among the `of` in-train points by influence, most harmful first.

    None if the point has no scores.
    """
    with open_scores(folder, {"influence", "in_train"}) as scores:
        register_ids(scores, "wanted", [point])
        rows: list[dict[str, Any]] = scores.connection.sql(STANDING).to_arrow_table().to_pylist()
    return rows[0] if rows else None
