"""What is done to points: the rows of `actions`, each written from what the newest one says.

A point is removed, relabelled or, with no action or a restoration as its newest, as the data set gives it. A roll-back
takes back what the proposals of its cycle did, and only where nothing was done to the point since: it writes again what
the action before said, with its scores and its proposal, a restoration if there was none. That row is of no proposal of
its own cycle, by which it is told from what it repeats (`LedgerViews.newest_actions`).
"""

from collections import Counter
from collections.abc import Collection
from datetime import datetime

import duckdb
import pyarrow as pa

from storage.connection import utc_now
from storage.errors import StorageError
from storage.points import Manifest
from storage.records import Applied

NOW = 2**31 - 1
"""Later than any cycle."""

MISSING = """
SELECT count(*) FROM proposal_rows p ANTI JOIN contents c ON p.point_id = CAST(c.point_id AS VARCHAR)
WHERE p.cycle = $cycle AND p.hash = $hash AND p.action <> 'restore'
"""

APPLY = f"""
INSERT INTO actions (cycle, point_id, action, new_label, reason, score, threshold, estimator, checkpoint_digest,
                     proposal, actor, content, event_at)
SELECT p.cycle, p.point_id, p.action, p.new_label, p.reason, p.score, p.threshold, $estimator, $checkpoint,
       p.hash, $actor, CASE WHEN p.action = 'restore' THEN n.content ELSE c.content END, $now
FROM proposal_rows p LEFT JOIN contents c ON p.point_id = CAST(c.point_id AS VARCHAR)
LEFT JOIN newest_as_of({NOW}) n ON n.point_id = p.point_id
WHERE p.cycle = $cycle AND p.hash = $hash AND CASE WHEN p.action = 'restore' THEN n.action IN ('remove', 'relabel')
      ELSE n.action IS DISTINCT FROM p.action OR n.new_label IS DISTINCT FROM p.new_label OR n.content <> c.content END
ORDER BY c.point_id, p.point_id
RETURNING action
"""

RESTORE = f"""
INSERT INTO actions (cycle, point_id, action, reason, proposal, actor, content, event_at)
SELECT $cycle, point_id, 'restore', $reason, proposal, $actor, content, $now
FROM newest_as_of({NOW}) SEMI JOIN restored USING (point_id) ORDER BY point_id
RETURNING action
"""

UNDO = f"""
INSERT INTO actions (cycle, point_id, action, new_label, reason, score, threshold, estimator, checkpoint_digest,
                     proposal, actor, content, event_at)
WITH undone AS (
    FROM newest_as_of({NOW}) a SEMI JOIN proposal_rows p
    ON p.cycle = a.cycle AND p.hash = a.proposal AND p.point_id = a.point_id AND p.action = a.action
    WHERE a.cycle = $cycle
), before AS (
    SELECT a.* FROM actions a JOIN undone u ON a.point_id = u.point_id AND a.seq < u.seq
    QUALIFY row_number() OVER (PARTITION BY a.point_id ORDER BY a.seq DESC) = 1
)
SELECT $cycle, u.point_id, coalesce(b.action, 'restore'), b.new_label, $reason, b.score, b.threshold,
       b.estimator, b.checkpoint_digest, coalesce(b.proposal, u.proposal), $actor, coalesce(b.content, u.content), $now
FROM undone u LEFT JOIN before b USING (point_id) ORDER BY u.point_id
RETURNING action
"""


def apply_rows(
    con: duckdb.DuckDBPyConnection,
    cycle: int,
    proposal: str,
    manifest: Manifest,
    estimator: str,
    checkpoint: str,
    actor: str,
) -> Applied:
    """Write an action for every row of a proposal; one that says what the newest action says already is left out.

    Raises:
        StorageError: the manifest lacks a point to be removed or relabelled.
    """
    con.register("contents", manifest.table.select(["point_id", "content"]))
    key = {"cycle": cycle, "hash": proposal}
    [(missing,)] = con.execute(MISSING, key).fetchall()
    if missing:
        raise StorageError(f"{missing} proposed points are not in the data set; propose again on this data set")
    made = {"estimator": estimator, "checkpoint": checkpoint, "actor": actor, "now": utc_now()}
    done = Counter(action for (action,) in con.execute(APPLY, {**key, **made}).fetchall())
    return Applied(removed=done["remove"], relabeled=done["relabel"], restored=done["restore"])


def restore_rows(con: duckdb.DuckDBPyConnection, cycle: int, texts: Collection[str], actor: str, reason: str) -> int:
    """Restore points that were removed or relabelled, given by the text of their ids; returns how many."""
    con.register("restored", pa.table({"point_id": pa.array(list(texts), pa.string())}))
    return len(con.execute(RESTORE, _said(cycle, actor, reason)).fetchall())


def undo_rows(con: duckdb.DuckDBPyConnection, cycle: int, actor: str, reason: str) -> int:
    """Take back what the proposals of a cycle did (see the module docstring); returns at how many points."""
    return len(con.execute(UNDO, _said(cycle, actor, reason)).fetchall())


def _said(cycle: int, actor: str, reason: str) -> dict[str, int | str | datetime]:
    return {"cycle": cycle, "reason": reason, "actor": actor, "now": utc_now()}
