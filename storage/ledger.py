"""The ledger: the append-only record of cycles, proposals, reviews, removals, relabelings and restorations.

Every method is one transaction on a connection of its own, and does nothing the second time, so a stage that is run
again after a kill repeats its calls without a trace. There is no method that updates or deletes: undoing is a row.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

import duckdb

from storage.connection import utc_now, writing
from storage.errors import CycleConflict, NotApproved, StorageError
from storage.files import JSON, canonical_json
from storage.ledger_actions import apply_rows, restore_rows, undo_rows
from storage.ledger_queries import (
    check_changed,
    event_of,
    is_finished,
    last_cycle,
    newest_action,
    newest_proposal,
    records,
    review_of,
)
from storage.ledger_rows import ACTOR, marks, proposal_of, put_proposal, record
from storage.ledger_views import LedgerViews
from storage.points import IdKind, Manifest, PointId
from storage.proposals import Proposal
from storage.records import FINAL, Applied, CycleRecord, Decision, ProposalRecord, ReviewRecord, State, Terms
from storage.reviews import OpenProposal, decide, expire, open_proposal, strike, struck_from

__all__ = ["FINAL", "Ledger", "State"]

ANYBODY = Terms()


class Ledger(LedgerViews):
    """The ledger of one workspace; nothing is open between calls."""

    @contextmanager
    def _write(self, create: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        if not create:
            self.require()
        with writing(self.path, self.patience) as con:
            yield con

    def open_cycle(
        self,
        cycle: int,
        dataset_sha256: str,
        config: Mapping[str, JSON],
        versions: Mapping[str, str],
        id_kind: IdKind,
        parent: int | None = None,
        mlflow_run_id: str | None = None,
        decided: int | None = None,
    ) -> CycleRecord:
        """Open the next cycle, or return it if it is open on the same data; creates the ledger.

        Args:
            cycle: Its number: the last one plus 1, or one that exists.
            dataset_sha256: Hash of the view it starts from.
            config: The resolved configuration.
            versions: Versions of what computes it.
            id_kind: Type of the point ids; the same in every cycle.
            parent: The cycle whose champion it starts from.
            mlflow_run_id: Its MLflow run.
            decided: `newest_action` as of the cycle before, read before the decisions that `dataset_sha256` rests on;
                None: they cannot have changed since.

        Raises:
            CycleConflict: wrong number, an unfinished cycle before it, other data or another type of ids, or points
                were decided on since.
        """
        row = [cycle, parent, dataset_sha256, canonical_json(config), canonical_json(versions), id_kind, mlflow_run_id]
        with self._write(create=True) as con:
            _check_opening(con, cycle, dataset_sha256, id_kind)
            if decided is not None and newest_action(con, cycle - 1) != decided:
                raise CycleConflict(f"decisions changed while cycle {cycle} was being opened; run again")
            con.execute(f"INSERT INTO cycles VALUES ({marks(8)}) ON CONFLICT DO NOTHING", [*row, utc_now()])
            record(con, cycle, "opened", ACTOR, {"dataset_sha256": dataset_sha256}, "")
            return records(con, CycleRecord, "FROM cycles WHERE cycle = ?", [cycle])[0]

    def record_event(self, cycle: int, state: State, detail: Mapping[str, JSON] | None = None, key: str = "") -> bool:
        """Record that a cycle reached a state.

        Args:
            cycle: An opened cycle.
            state: The state reached.
            detail: Anything that explains it.
            key: Tells apart several events of one state, e.g. the arms retrained.

        Returns:
            False if this (cycle, state, key) was recorded before; the record then stays as it was.
        """
        with self._write() as con:
            return record(con, cycle, state, ACTOR, detail or {}, key)

    def add_proposal(self, proposal: Proposal, terms: Terms = ANYBODY) -> bool:
        """Record a proposal with its rows; it supersedes earlier ones of its cycle and needs a review of its own.

        One that was superseded and not decided on is open again, by another event `proposed`.

        Args:
            proposal: With its rows.
            terms: What its review has to fulfil.

        Returns:
            False if it is the newest already, or if the newest is what a reviewer left of it.

        Raises:
            CycleConflict: it was decided on and then superseded.
        """
        with self._write() as con:
            newest = newest_proposal(con, proposal.cycle)
            if newest is not None and newest.hash == proposal.hash:
                return False
            if struck_from(con, proposal.cycle, proposal.hash) is not None:
                return False
            return put_proposal(con, proposal, terms, ACTOR)

    def add_review(
        self, hash_or_prefix: str, decision: Decision, actor: str, how: str, reason: str = ""
    ) -> ReviewRecord | None:
        """Decide on the open proposal: the newest one of the unfinished cycle.

        Args:
            hash_or_prefix: Its hash, or at least the first 12 hex digits.
            decision: "approve" or "reject".
            actor: Who decides; never empty.
            how: Where the decision came from: cli, rule, mlflow, prefect.
            reason: Why, in the actor's words.

        Returns:
            The decision on record; None where the approval was recorded and another named person must approve, too.
            Deciding the same again changes nothing.

        Raises:
            StaleApproval: the hash is not that of the open proposal, it was decided the other way, it has expired, or
                it takes two named persons and the actor is none.
            StorageError: no actor.
        """
        _check_actor(actor)
        with self._write() as con:
            return decide(con, hash_or_prefix, decision, actor, how, reason)

    def strike(
        self, hash_or_prefix: str, points: Collection[PointId], actor: str, how: str, reason: str = ""
    ) -> ProposalRecord:
        """Strike points out of the open proposal: a new one, which supersedes it and which the actor approves.

        Args:
            hash_or_prefix: As in `add_review`.
            points: What is struck out; it rests afterwards like what was rejected.
            actor: Who does.
            how: Where the act came from.
            reason: Why, in the actor's words.

        Returns:
            The new proposal. Striking the same again changes nothing.

        Raises:
            StaleApproval: as in `add_review`; or it does not name one of the points, or no other point.
            StorageError: no actor.
        """
        _check_actor(actor)
        with self._write() as con:
            return strike(con, hash_or_prefix, points, actor, how, reason)

    def expire(self, cycle: int) -> bool:
        """Record that nobody decided on the open proposal of a cycle in time; False where that is not so."""
        with self._write() as con:
            return expire(con, cycle)

    def open_proposal(self) -> OpenProposal | None:
        """The newest proposal of the unfinished cycle, and what stands about its review."""
        with self._open() as con:
            return open_proposal(con)

    def left_of(self, cycle: int, proposal: str) -> Proposal | None:
        """What reviewers left of a proposal (its full hash) by striking points out; None where they did not."""
        with self._open() as con:
            found = struck_from(con, cycle, proposal)
            return None if found is None else proposal_of(con, found)

    def apply_proposal(
        self, cycle: int, proposal: str, manifest: Manifest, estimator: str, checkpoint_digest: str
    ) -> Applied:
        """Remove, relabel and restore the points of an approved proposal, all in one transaction.

        Args:
            cycle: The cycle that proposed.
            proposal: The full hash.
            manifest: The data set, for the content hash of each point.
            estimator: What scored them.
            checkpoint_digest: What they were scored on.

        Returns:
            What this proposal did; the second time what it did the first time.

        Raises:
            NotApproved: no review approves this very proposal.
            StorageError: the manifest lacks a point.
        """
        with self._write() as con:
            review = review_of(con, cycle, proposal)
            if review is None or review.decision != "approve":
                raise NotApproved(
                    f"proposal {proposal[:12]} of cycle {cycle} is {'rejected' if review else 'not reviewed'}; only an "
                    f"approved proposal is applied: `tamis approve {proposal[:12]} --by NAME`"
                )
            earlier = event_of(con, cycle, "applied", proposal)
            if earlier is not None:
                return Applied(*(earlier.detail.get(name, 0) for name in ("removed", "relabeled", "restored")))
            done = apply_rows(con, cycle, proposal, manifest, estimator, checkpoint_digest, review.actor)
            record(con, cycle, "applied", review.actor, {"proposal": proposal, **asdict(done)}, proposal)
            return done

    def restore(self, points: Collection[PointId], actor: str, reason: str) -> int:
        """Bring points back as the data set gives them; recorded in the last cycle, so it holds from the next one on.

        Returns:
            The number of points restored.

        Raises:
            NotRemoved: names those that are neither removed nor relabelled now; then none is restored.
        """
        with self._write() as con:
            texts = check_changed(con, points)
            last = last_cycle(con)
            return restore_rows(con, last.cycle, texts, actor, reason) if last else 0

    def roll_back(self, cycle: int, actor: str, reason: str) -> int:
        """Take back what a cycle's proposals did and nobody has changed since, and end the cycle as `rolled_back`.

        Returns:
            The number of points this call brought back to what they were; 0 the second time.
        """
        with self._write() as con:
            if event_of(con, cycle, "rolled_back", "") is not None:
                return 0
            count = undo_rows(con, cycle, actor, reason)
            record(con, cycle, "rolled_back", actor, {"restored": count, "reason": reason}, "")
            return count


def _check_actor(actor: str) -> None:
    if not actor.strip():
        raise StorageError("a review needs the name of who decides; give one, e.g. --by NAME")


def _check_opening(con: duckdb.DuckDBPyConnection, cycle: int, dataset_sha256: str, id_kind: IdKind) -> None:
    last = last_cycle(con)
    if last is not None and last.id_kind != id_kind:
        raise CycleConflict(f"point ids were {last.id_kind} in cycle {last.cycle} and are {id_kind} now; keep the type")
    expected = last.cycle + 1 if last else 1
    if cycle > expected or cycle < 1:
        raise CycleConflict(f"cycle {cycle} cannot be opened; the next one is {expected}")
    if last is not None and cycle == expected and not is_finished(con, last.cycle):
        raise CycleConflict(f"cycle {last.cycle} is unfinished; continue it before cycle {cycle} is opened")
    there = records(con, CycleRecord, "FROM cycles WHERE cycle = ?", [cycle])
    if there and there[0].dataset_sha256 != dataset_sha256:
        raise CycleConflict(
            f"cycle {cycle} was opened on data {there[0].dataset_sha256[:12]} and is continued on "
            f"{dataset_sha256[:12]}; give it the data it was opened on"
        )
