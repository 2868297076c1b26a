"""What transactions and views of the ledger ask it: on a connection that is open."""

import json
import re
from collections.abc import Collection
from typing import Any, TypeVar

import duckdb

from storage.errors import NotRemoved, StorageError
from storage.ledger_actions import NOW
from storage.points import PointId, id_text
from storage.records import FINAL, CycleRecord, EventRecord, ProposalRecord, ReviewRecord, State

T = TypeVar("T")
HEAD = re.compile(r"[0-9a-f]{12,64}")
NEWEST = """
SELECT p.* EXCLUDE (seq) FROM proposals p JOIN events e ON e.cycle = p.cycle AND left(e.key, 64) = p.hash
WHERE p.cycle = ? AND e.state = 'proposed' ORDER BY e.seq DESC LIMIT 1
"""
REVIEWS = "SELECT cycle, hash AS proposal, decision, actor, how, reason, event_at FROM reviews"


def records(con: duckdb.DuckDBPyConnection, kind: type[T], query: str, parameters: Any) -> tuple[T, ...]:
    """Rows as dataclasses whose fields carry the column names; a column `x_json` becomes the field `x`."""
    cursor = con.execute(query, parameters)
    names = [column[0] for column in cursor.description]
    return tuple(
        kind(**{n.removesuffix("_json"): json.loads(v) if n.endswith("_json") else v for n, v in zip(names, row)})
        for row in cursor.fetchall()
    )


def last_cycle(con: duckdb.DuckDBPyConnection) -> CycleRecord | None:
    """The cycle with the highest number."""
    found = records(con, CycleRecord, "FROM cycles ORDER BY cycle DESC LIMIT 1", [])
    return found[0] if found else None


def is_finished(con: duckdb.DuckDBPyConnection, cycle: int) -> bool:
    """Whether the cycle has ended for good."""
    query = "SELECT count(*) FROM events WHERE cycle = ? AND key = '' AND list_contains(?, state)"
    [(count,)] = con.execute(query, [cycle, list(FINAL)]).fetchall()
    return bool(count)


def newest_proposal(con: duckdb.DuckDBPyConnection, cycle: int) -> ProposalRecord | None:
    """The proposal of a cycle that a review may still be of: the one that was proposed, or proposed again, last."""
    found = records(con, ProposalRecord, NEWEST, [cycle])
    return found[0] if found else None


def review_of(con: duckdb.DuckDBPyConnection, cycle: int, proposal: str) -> ReviewRecord | None:
    """The decision on a proposal, if there is one."""
    found = records(con, ReviewRecord, f"{REVIEWS} WHERE cycle = ? AND hash = ?", [cycle, proposal])
    return found[0] if found else None


def event_of(con: duckdb.DuckDBPyConnection, cycle: int, state: State, key: str) -> EventRecord | None:
    """One event of a cycle, if it was recorded."""
    query = "FROM events WHERE cycle = ? AND state = ? AND key = ?"
    found = records(con, EventRecord, query, [cycle, state, key])
    return found[0] if found else None


def newest_action(con: duckdb.DuckDBPyConnection, cycle: int) -> int:
    """The number of the newest action as of a cycle; 0 if there is none."""
    [(seq,)] = con.execute("SELECT coalesce(max(seq), 0) FROM actions WHERE cycle <= ?", [cycle]).fetchall()
    return int(seq)


def check_changed(con: duckdb.DuckDBPyConnection, points: Collection[PointId]) -> list[str]:
    """The texts of points, sorted; raises as `LedgerViews.check_changed`."""
    texts = sorted({id_text(point) for point in points})
    query = "SELECT point_id FROM newest_as_of(?) WHERE action <> 'restore'"
    changed = {text for (text,) in con.execute(query, [NOW]).fetchall()}
    wrong = [text for text in texts if text not in changed]
    if wrong:
        raise NotRemoved(
            f"neither removed nor relabelled, so not to be restored: {', '.join(wrong[:5])}; see `tamis ledger why`"
        )
    return texts


def check_head(head: str | None) -> None:
    """Refuse what is no head of a ledger."""
    if head is not None and not HEAD.fullmatch(head):
        raise StorageError(f"{head!r} is no head of a ledger; give 12 to 64 hex digits, as `verify` prints them")
