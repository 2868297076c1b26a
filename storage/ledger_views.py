"""What the ledger tells: reads only, each on a connection of its own.

The view as of a cycle is the data set after that cycle: the state of a point is its newest action with `cycle <= c`, by
sequence. The data set that cycle c started from is therefore the manifest without those of `removed_contents(c - 1)`,
and with the labels of `relabeled_contents(c - 1)`, that still have the content they had then.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from storage import chain, lake
from storage.connection import reading
from storage.errors import CycleConflict, LedgerMissing, UnknownPoint
from storage.lake import Lake
from storage.ledger_actions import NOW
from storage.ledger_queries import (
    check_changed,
    check_head,
    is_finished,
    last_cycle,
    newest_action,
    newest_proposal,
    records,
    review_of,
)
from storage.points import PointId, id_from_text, id_text
from storage.records import (
    ASIDES,
    DATA_MOVED,
    FINAL,
    ActionRecord,
    CycleRecord,
    EventRecord,
    Explanation,
    Mention,
    ProposalRecord,
    Relabeling,
    ReviewRecord,
    State,
)
from storage.views import Decisions

SUPERSEDED = """
SELECT cycle, left(key, 64) AS hash, arg_max(substr(key, 66), seq) AS left_hash, arg_max(actor, seq) AS actor
FROM events WHERE state = 'superseded' GROUP BY ALL
"""
STRUCK = f"""
SELECT r.cycle, r.hash, r.point_id, s.actor FROM proposal_rows r JOIN ({SUPERSEDED}) s USING (cycle, hash)
ANTI JOIN proposal_rows k ON k.cycle = r.cycle AND k.hash = s.left_hash AND k.point_id = r.point_id
"""
ORIGINS = """
SELECT o.* FROM newest_as_of(?) n JOIN actions o
ON o.point_id = n.point_id AND o.action = n.action AND o.proposal IS NOT DISTINCT FROM n.proposal AND o.seq <= n.seq
LEFT JOIN proposal_rows p ON p.cycle = o.cycle AND p.hash = o.proposal AND p.point_id = o.point_id
                          AND p.action = o.action
WHERE o.seq = n.seq OR p.hash IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY n.seq ORDER BY p.hash IS NULL, o.seq DESC) = 1 ORDER BY o.seq
"""
"""A row that a roll-back wrote again is of no proposal of its cycle: it stands for the last one before it that is."""
CITED = """
SELECT checkpoint_digest FROM actions WHERE checkpoint_digest IS NOT NULL
UNION SELECT key FROM events WHERE state = 'trained'
"""
CITING = """
WITH standing AS (FROM newest_as_of($now) WHERE action <> 'restore')
SELECT cycle FROM standing UNION SELECT p.cycle FROM proposals p SEMI JOIN standing s ON s.proposal = p.hash
"""


class LedgerViews:
    """The reading half of `storage.ledger.Ledger`.

    Args:
        path: The DuckDB file, or the lake.
        patience: Seconds to wait for another process that holds it.
    """

    def __init__(self, path: Path | Lake, patience: float = 30.0) -> None:
        self.path, self.patience, self._found = path, patience, False

    @property
    def exists(self) -> bool:
        """Whether a cycle was ever opened here."""
        if isinstance(self.path, Lake):  # to ask costs a connection, and one that is there stays
            self._found = self._found or lake.exists(self.path)
            return self._found
        return self.path.is_file()

    @contextmanager
    def _open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if not isinstance(self.path, Lake):  # which says so itself: to ask it costs as much as to open it
            self.require()
        with reading(self.path, self.patience) as con:
            yield con

    def require(self) -> None:
        """Check that there is one.

        Raises:
            LedgerMissing: no cycle was ever opened here.
        """
        if not self.exists:
            raise LedgerMissing(f"there is no ledger at {self.path}; start a cycle with `tamis run`")

    def last_cycle(self) -> CycleRecord | None:
        """The newest cycle."""
        with self._open() as con:
            return last_cycle(con)

    def unfinished_cycle(self) -> CycleRecord | None:
        """The newest cycle if no final state ended it; earlier ones always have one."""
        with self._open() as con:
            last = last_cycle(con)
            return None if last is None or is_finished(con, last.cycle) else last

    def cycle(self, cycle: int) -> CycleRecord:
        """One cycle.

        Raises:
            CycleConflict: it was never opened.
        """
        with self._open() as con:
            found = records(con, CycleRecord, "FROM cycles WHERE cycle = ?", [cycle])
        if not found:
            raise CycleConflict(f"cycle {cycle} was never opened in {self.path}; see `tamis ledger log`")
        return found[0]

    def state(self, cycle: int) -> State:
        """The state that ended a cycle, else the one that its newest event left that was no aside.

        Raises:
            CycleConflict: it was never opened.
        """
        events = [event for event in self.events(cycle) if event.state not in ASIDES]
        if not events:
            raise CycleConflict(f"cycle {cycle} was never opened in {self.path}; see `tamis ledger log`")
        ends = (event.state for event in events if event.state in FINAL and not event.key)
        return next(ends, events[-1].state)

    def events(self, cycle: int) -> tuple[EventRecord, ...]:
        """All events of a cycle, in order."""
        with self._open() as con:
            return records(con, EventRecord, "FROM events WHERE cycle = ? ORDER BY seq", [cycle])

    def cited_checkpoints(self) -> frozenset[str]:
        """Digests of the models that cycles were scored on, in events and in actions."""
        with self._open() as con:
            return frozenset(digest for (digest,) in con.execute(CITED).fetchall())

    def cited_cycles(self) -> frozenset[int]:
        """The cycles whose scores a removal or a relabeling that stands now rests on."""
        with self._open() as con:
            return frozenset(cycle for (cycle,) in con.execute(CITING, {"now": NOW}).fetchall())

    def log(self, limit: int = 50) -> tuple[EventRecord, ...]:
        """The newest events of all cycles, newest first."""
        with self._open() as con:
            return records(con, EventRecord, "FROM events ORDER BY seq DESC LIMIT ?", [limit])

    def since(self, seq: int) -> tuple[EventRecord, ...]:
        """The events of all cycles after one, in order."""
        with self._open() as con:
            return records(con, EventRecord, "FROM events WHERE seq > ? ORDER BY seq", [seq])

    def head(self) -> str:
        """The last link of the hash chain: kept elsewhere, it shows that nothing before it was changed since."""
        with self._open() as con:
            return chain.head(con)

    def has_link(self, head: str) -> bool:
        """Whether a head that was kept elsewhere is a link of the chain, which is not computed again."""
        with self._open() as con:
            return bool(con.execute("SELECT 1 FROM chain WHERE sha256 = ? LIMIT 1", [head]).fetchall())

    def verify(self, anchor: str | None = None) -> chain.Verification:
        """Check every row against the hash chain.

        Args:
            anchor: A head that was kept elsewhere; at least 12 hex digits.

        Raises:
            StorageError: the anchor is no such thing.
        """
        check_head(anchor)
        with self._open() as con:
            return chain.verify(con, anchor)

    def proposal(self, cycle: int) -> ProposalRecord | None:
        """The newest proposal of a cycle."""
        with self._open() as con:
            return newest_proposal(con, cycle)

    def review(self, cycle: int, proposal: str) -> ReviewRecord | None:
        """The decision on a proposal (its full hash)."""
        with self._open() as con:
            return review_of(con, cycle, proposal)

    def removed_as_of(self, cycle: int | None = None) -> frozenset[PointId]:
        """The points removed after a cycle (see the module docstring), by id whatever their content; None: now."""
        with self._open() as con:
            query = "SELECT point_id FROM removed_as_of(?)"
            return self._ids(con, query, [NOW if cycle is None else cycle])

    def removed_contents(self, cycle: int | None = None) -> dict[PointId, str]:
        """The points of `removed_as_of` with the content hash each was removed with.

        The same id with other content is a new point, which nobody has removed.
        """
        query = "SELECT point_id, content FROM removed_as_of(?)"
        with self._open() as con:
            last = last_cycle(con)
            if last is None:
                return {}
            found = con.execute(query, [NOW if cycle is None else cycle]).fetchall()
            return {id_from_text(text, last.id_kind): content for text, content in found}

    def relabeled_contents(self, cycle: int | None = None) -> dict[PointId, Relabeling]:
        """The points relabelled after a cycle, with their label and the content hash each had; None: now.

        The same id with other content is a new point, which nobody has relabelled.
        """
        query = "SELECT point_id, new_label, content FROM relabeled_as_of(?)"
        with self._open() as con:
            last = last_cycle(con)
            if last is None:
                return {}
            found = con.execute(query, [NOW if cycle is None else cycle]).fetchall()
            return {id_from_text(text, last.id_kind): Relabeling(label, content) for text, label, content in found}

    def decisions(self, cycle: int) -> Decisions:
        """What is removed and relabelled after a cycle, as tables."""
        with self._open() as con:
            last = last_cycle(con)
            point_id = f"CAST(point_id AS {'BIGINT' if last and last.id_kind == 'int' else 'VARCHAR'}) AS point_id"
            removed = con.execute(f"SELECT {point_id}, content FROM removed_as_of(?)", [cycle]).to_arrow_table()
            label = "new_label AS label"
            relabeled = con.execute(f"SELECT {point_id}, content, {label} FROM relabeled_as_of(?)", [cycle])
            return Decisions(removed, relabeled.to_arrow_table())

    def newest_actions(self, cycle: int | None = None) -> tuple[ActionRecord, ...]:
        """The newest action of every point that ever had one, as of a cycle, in order; None: now.

        In place of what a roll-back wrote again stands what it wrote again, with its cycle, reason and actor.
        """
        with self._open() as con:
            return records(con, ActionRecord, ORIGINS, [NOW if cycle is None else cycle])

    def newest_action(self, cycle: int) -> int:
        """The number of the newest action as of a cycle; 0 if there is none."""
        with self._open() as con:
            return newest_action(con, cycle)

    def check_changed(self, points: Collection[PointId]) -> None:
        """Check that points are removed or relabelled now.

        Raises:
            NotRemoved: names the first that are not.
        """
        with self._open() as con:
            check_changed(con, points)

    def cooldown(self, cycle: int, cycles: int) -> frozenset[PointId]:
        """The points not to be proposed in `cycle`: restored, rejected, struck out or rolled back in those before it.

        A roll-back by `DATA_MOVED` judged no point, so it starts no cooldown.
        """
        query = f"""
            SELECT point_id FROM actions
            WHERE action = 'restore' AND actor <> $data_moved AND cycle BETWEEN $first AND $last
            UNION
            SELECT a.point_id FROM actions a SEMI JOIN events e
            ON e.cycle = a.cycle AND e.state = 'rolled_back' AND e.actor <> $data_moved
            WHERE a.cycle BETWEEN $first AND $last
            UNION
            SELECT point_id FROM proposal_rows JOIN reviews USING (cycle, hash)
            WHERE decision = 'reject' AND cycle BETWEEN $first AND $last
            UNION
            SELECT point_id FROM ({STRUCK}) WHERE cycle BETWEEN $first AND $last"""
        with self._open() as con:
            return self._ids(con, query, {"first": cycle - cycles, "last": cycle - 1, "data_moved": DATA_MOVED})

    @staticmethod
    def _ids(con: duckdb.DuckDBPyConnection, query: str, parameters: Any) -> frozenset[PointId]:
        last = last_cycle(con)
        if last is None:
            return frozenset()
        return frozenset(id_from_text(text, last.id_kind) for (text,) in con.execute(query, parameters).fetchall())

    def why(self, point: PointId) -> Explanation:
        """Everything that was proposed for, decided on and done to a point.

        Raises:
            UnknownPoint: no proposal and no action names it.
        """
        text = id_text(point)
        mentions = f"""
            SELECT r.cycle, r.hash AS proposal, r.action, r.new_label, r.reason, r.score, r.threshold,
                   CASE WHEN v.decision IS NOT NULL THEN v.decision WHEN k.actor IS NOT NULL THEN 'strike'
                        WHEN s.actor IS NOT NULL THEN 'supersede' WHEN x.actor IS NOT NULL THEN 'expire' END decision,
                   coalesce(v.actor, k.actor, s.actor, x.actor) AS actor
            FROM proposal_rows r JOIN proposals p USING (cycle, hash) LEFT JOIN reviews v USING (cycle, hash)
            LEFT JOIN ({STRUCK}) k USING (cycle, hash, point_id) LEFT JOIN ({SUPERSEDED}) s USING (cycle, hash)
            LEFT JOIN (SELECT DISTINCT cycle, left(key, 64) AS hash, actor FROM events WHERE state = 'expired') x
            USING (cycle, hash)
            WHERE point_id = ? ORDER BY p.seq"""
        with self._open() as con:
            actions = records(con, ActionRecord, "FROM actions WHERE point_id = ? ORDER BY seq", [text])
            proposals = records(con, Mention, mentions, [text])
        if not actions and not proposals:
            raise UnknownPoint(f"the ledger has nothing on point {text}: it was never proposed, removed or restored")
        removals = [action for action in actions if action.action == "remove"]
        removed = bool(actions) and actions[-1].action == "remove"
        told = Explanation(text, removed, None, actions, proposals)
        return replace(told, removal=told.origin(removals[-1]) if removals else None)
