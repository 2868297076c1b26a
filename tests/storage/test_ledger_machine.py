"""Any sequence of decisions, with crashes between, against a model in plain Python."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from storage import chain
from storage.errors import CycleConflict, NotApproved, NotRemoved, StaleApproval
from storage.ledger import Ledger
from storage.points import Manifest
from storage.proposals import Proposal
from storage.records import Terms

N = 8
MANIFEST = Manifest.build(range(N), [f"c{i}" for i in range(N)], [f"i{i}" for i in range(N)])
FUSE = st.one_of(st.none(), st.integers(0, 8))
"""After how many statements the process is gone; None: it lives."""


SELDOM = st.sampled_from([False, False, False, True])
"""So that cycles get as far as being applied."""
SOON = 1e-7
"""Hours: over before anybody can decide."""
TERMS = st.sampled_from([Terms(), Terms(N, 0.4), Terms(N, 0.4, 1000.0), Terms(), Terms(expires_hours=SOON)])


class Crash(Exception):
    """Instead of a kill."""


class Fused:
    """A connection that breaks at a statement."""

    def __init__(self, con: duckdb.DuckDBPyConnection, statements: int) -> None:
        self.con, self.left = con, statements

    def execute(self, *arguments: Any) -> duckdb.DuckDBPyConnection:
        if not self.left:
            raise Crash
        self.left -= 1
        return self.con.execute(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.con, name)


class Mortal(Ledger):
    """A ledger whose next transaction ends after `fuse` statements, at the latest just before its commit."""

    fuse: int | None = None

    @contextmanager
    def _write(self, create: bool = False) -> Iterator[Any]:
        with super()._write(create) as con:
            if self.fuse is None:
                yield con
                return
            yield Fused(con, self.fuse)
            raise Crash


class Decisions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Mortal(Path(self.folder.name) / "ledger.duckdb", patience=60)
        self.history: dict[int, list[tuple[int, str, int | None, str]]] = {point: [] for point in range(N)}
        self.cycle, self.phase, self.made = 0, "over", 0
        self.proposal: Proposal | None = None
        self.terms, self.approved = Terms(), set[str]()
        self.head = ""

    def teardown(self) -> None:
        self.folder.cleanup()

    def surely(self, fuse: int | None, call: Callable[[], Any]) -> Any:
        """Call, and if the process died of it, look whether it left a trace, and call again."""
        if fuse is not None and self.ledger.exists:
            self.ledger.fuse = fuse
            with pytest.raises(Crash):
                call()
            self.ledger.fuse = None
            assert self.ledger.head() == self.head, "a transaction that did not end left something"
        result = call()
        self.head = self.ledger.head()
        call()
        assert self.ledger.head() == self.head, "the second time, as after a kill, left something"
        return result

    def state(self, point: int, cycle: int) -> tuple[str, int | None]:
        last = [entry for entry in self.history[point] if entry[0] <= cycle][-1:]
        return (last[0][1], last[0][2]) if last else ("restore", None)

    def changed(self) -> list[int]:
        return [point for point in range(N) if self.state(point, self.cycle)[0] != "restore"]

    @precondition(lambda self: self.phase == "over")
    @rule(fuse=FUSE)
    def open_next(self, fuse: int | None) -> None:
        self.cycle += 1
        self.surely(fuse, lambda: self.ledger.open_cycle(self.cycle, "d", {}, {}, "int"))
        self.phase = "open"

    @precondition(lambda self: self.phase in ("open", "proposed"))
    @rule(
        wanted=st.dictionaries(st.integers(0, N - 1), st.integers(0, 3), min_size=1),
        terms=TERMS,
        again=SELDOM,
        fuse=FUSE,
    )
    def propose(self, wanted: dict[int, int], terms: Terms, again: bool, fuse: int | None) -> None:
        if self.phase == "proposed" and not again:
            return
        rows = []
        for point, draw in sorted(wanted.items()):
            now = self.state(point, self.cycle - 1)[0]
            can = {"remove": ["restore"], "relabel": ["restore", "remove", "relabel"], "restore": ["remove", "relabel"]}
            action = can[now][draw % len(can[now])]
            label = draw if action == "relabel" else None
            rows.append({"point_id": point, "action": action, "new_label": label, "reason": "r", "score": -0.5})
        schema = pa.schema(
            {
                "point_id": pa.int64(),
                "action": pa.string(),
                "new_label": pa.int32(),
                "reason": pa.string(),
                "score": pa.float64(),
                "threshold": pa.float64(),
            }
        )
        self.offer(pa.Table.from_pylist(rows, schema), terms, fuse)

    def offer(self, rows: pa.Table, terms: Terms, fuse: int | None) -> None:
        with pytest.raises(CycleConflict):
            self.ledger.open_cycle(self.cycle + 1, "d", {}, {}, "int")
        earlier = self.proposal
        self.made += 1
        self.proposal = Proposal(self.cycle, rows, "d", "s", {"made": self.made})
        self.surely(fuse, lambda: self.ledger.add_proposal(self.proposal, terms))
        self.phase, self.terms, self.approved = "proposed", terms, set()
        if earlier is not None and earlier.cycle == self.cycle:
            with pytest.raises(StaleApproval):
                self.ledger.add_review(earlier.hash, "approve", "eve", "cli")

    @precondition(lambda self: self.phase == "proposed")
    @rule(
        act=st.sampled_from(["approve", "approve", "strike", "reject"]),
        who=st.sampled_from(["ada", "bob"]),
        places=st.sets(st.integers(0, N - 1), min_size=1, max_size=2),
        fuse=FUSE,
    )
    def review(self, act: str, who: str, places: set[int], fuse: int | None) -> None:
        """One rule for all acts, so that cycles get past the review as often as with one act."""
        made = self.proposal
        with pytest.raises(NotApproved):
            self.ledger.apply_proposal(self.cycle, made.hash, MANIFEST, "e", "k")
        with pytest.raises(StaleApproval):
            self.ledger.add_review("0" * 64, "approve", "bob", "cli")
        if self.terms.expires_hours == SOON:
            self.expire(fuse)
        elif act == "strike":
            self.strike(places, who, fuse)
        else:
            self.decide(act, who, fuse)

    def approves(self, who: str) -> None:
        """The model of an approval: it decides unless it takes two, and this is the first of them."""
        self.approved.add(who)
        if len(self.approved) >= self.terms.persons(self.proposal.size):
            self.phase = "approved"

    def decide(self, decision: str, who: str, fuse: int | None) -> None:
        made = self.proposal
        self.surely(fuse, lambda: self.ledger.add_review(made.hash[:12], decision, who, "cli"))
        if decision == "approve":
            self.approves(who)
        else:
            self.phase = "rejected"
        if self.phase != "proposed":
            other = "reject" if decision == "approve" else "approve"
            with pytest.raises(StaleApproval, match=f"by .*{who}"):
                self.ledger.add_review(made.hash, other, "eve", "cli")

    def strike(self, places: set[int], who: str, fuse: int | None) -> None:
        made = self.proposal
        struck = [made.points[place] for place in places if place < made.size]
        if not struck or len(struck) == made.size:
            with pytest.raises(StaleApproval, match="keeps all its points" if not struck else "that is a rejection"):
                self.ledger.strike(made.hash, struck, who, "cli")
            return
        left = self.surely(fuse, lambda: self.ledger.strike(made.hash, struck, who, "cli"))
        kept = pa.array([point not in struck for point in made.points])
        self.proposal = Proposal(self.cycle, made.rows.filter(kept), "d", "s", made.policy)
        assert left.hash == self.proposal.hash
        assert not self.ledger.add_proposal(made), "what was struck out of is not open again"
        self.approved = set()
        self.approves(who)

    def expire(self, fuse: int | None) -> None:
        with pytest.raises(StaleApproval, match="expired at"):
            self.ledger.add_review(self.proposal.hash, "approve", "ada", "cli")
        assert self.surely(fuse, lambda: self.ledger.expire(self.cycle))
        self.surely(fuse, lambda: self.ledger.record_event(self.cycle, "expired"))
        self.phase = "over"

    @precondition(lambda self: self.phase == "approved")
    @rule(fuse=FUSE)
    def apply(self, fuse: int | None) -> None:
        made = self.proposal
        done = self.surely(fuse, lambda: self.ledger.apply_proposal(self.cycle, made.hash, MANIFEST, "e", "k"))
        count = {"remove": 0, "relabel": 0, "restore": 0}
        for row in made.rows.to_pylist():
            said = (row["action"], row["new_label"])
            if self.state(row["point_id"], self.cycle) != said:
                self.history[row["point_id"]].append((self.cycle, *said, "proposal"))
                count[row["action"]] += 1
        assert (done.removed, done.relabeled, done.restored) == tuple(count.values())
        self.phase = "applied"

    @precondition(lambda self: self.cycle)
    @rule(points=st.sets(st.integers(0, N - 1), min_size=1), fuse=FUSE)
    def restore(self, points: set[int], fuse: int | None) -> None:
        if not points <= set(self.changed()):
            with pytest.raises(NotRemoved):
                self.ledger.restore(points, "bob", "")
            return
        if fuse is not None:
            self.ledger.fuse = fuse
            with pytest.raises(Crash):
                self.ledger.restore(points, "bob", "")
            self.ledger.fuse = None
        assert self.ledger.restore(points, "bob", "") == len(points)
        self.head = self.ledger.head()
        for point in points:
            self.history[point].append((self.cycle, "restore", None, "hand"))

    @precondition(lambda self: self.phase in ("applied", "rejected"))
    @rule(fuse=FUSE)
    def promote(self, fuse: int | None) -> None:
        self.surely(fuse, lambda: self.ledger.record_event(self.cycle, "promoted"))
        self.phase = "over"

    @precondition(lambda self: self.phase != "over")
    @rule(early=SELDOM, fuse=FUSE)
    def roll_back(self, early: bool, fuse: int | None) -> None:
        if self.phase in ("open", "proposed", "approved") and not early:
            return
        count = self.surely(fuse, lambda: self.ledger.roll_back(self.cycle, "rule:guardrail", ""))
        undone = 0
        for entries in self.history.values():
            if entries and entries[-1][0] == self.cycle and entries[-1][3] == "proposal":
                before = entries[-2][1:3] if len(entries) > 1 else ("restore", None)
                entries.append((self.cycle, *before, "undo"))
                undone += 1
        assert count == undone
        self.phase = "over"

    @invariant()
    def views_are_those_of_the_model_and_the_chain_verifies(self) -> None:
        if not self.cycle:
            return
        done: dict[int, list[tuple[str, int | None]]] = {point: [] for point in range(N)}
        with self.ledger._open() as con:
            for cycle in range(self.cycle + 1):
                states = {str(point): self.state(point, cycle) for point in range(N)}
                out = {point for point, (action, _) in states.items() if action == "remove"}
                labels = {point: label for point, (action, label) in states.items() if action == "relabel"}
                found = con.execute("SELECT point_id FROM removed_as_of(?)", [cycle]).fetchall()
                assert {point for (point,) in found} == out
                found = con.execute("SELECT point_id, new_label FROM relabeled_as_of(?)", [cycle]).fetchall()
                assert dict(found) == labels
            for point, *said in con.execute("SELECT point_id, action, new_label FROM actions ORDER BY seq").fetchall():
                done[int(point)].append(tuple(said))
            assert chain.verify(con, self.head).holds
        for point, entries in self.history.items():
            assert done[point] == [entry[1:3] for entry in entries]
            assert all(a != b for a, b in pairwise(done[point])), "nothing is done twice"


def examples(machine: type[Decisions], count: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=count,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_any_sequence_of_decisions_and_crashes_leaves_the_ledger_as_the_model_says() -> None:
    examples(Decisions, 10)
