"""Any sequence of cycles whose proposals are selected within budgets: what stands is within every one of them."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from storage.budgets import Budgets
from storage.ledger import Ledger
from storage.points import Manifest
from storage.policies import Regret, Rule
from storage.proposals import Proposal
from storage.selection import select
from tests.storage.score_tables import ALL, HARMFUL, Row, write

LABELS = [0, 0, 0, 0, 0, 1, 1, 1]
GROUPS = ["a", "a", "b", "b", None, "a", "b", None]
N = len(LABELS)
MANIFEST = Manifest.build(range(N), [f"c{i}" for i in range(N)], [f"i{i}" for i in range(N)], LABELS)
RULES = [HARMFUL, Rule("mislabeled", "mislabeled", "suspicion", ">=", 0.5, relabel="suggested")]
TIGHT = {
    "cycle": [0.25, 0.5],
    "cumulative": [0.25, 0.5],
    "per_class": [1 / 3, 0.5],
    "per_group": [1 / 3, 0.5],
    "minimum_kept": [4, 6],
    "minimum_per_class": [2, 3],
    "protected": [frozenset({0}), frozenset({6})],
    "protected_groups": [frozenset({"b"})],
}
"""Each at times the only one that binds."""


@dataclass(frozen=True)
class Turn:
    """A cycle: influence, suspicion and suggested label of every point, how it ends, what is restored by hand then."""

    scores: list[tuple[float, float, int]]
    end: str
    back: set[int]


SCORES = st.tuples(st.sampled_from([-2.0, -1.0, -1.0, 9.0]), st.sampled_from([0.0, 0.0, 1.0]), st.integers(0, 2))
TURNS = st.builds(
    Turn,
    st.lists(SCORES, min_size=N, max_size=N),
    st.sampled_from(["promoted", "promoted", "promoted", "rejected", "rolled back"]),
    st.sets(st.integers(0, N - 1), max_size=2),
)


class Curated:
    """A ledger that cycles are turned on, and the label of each point in training by a model, None where removed."""

    def __init__(self, folder: Path, budgets: Budgets, cooldown: int) -> None:
        self.folder, self.budgets, self.rest = folder, budgets, cooldown
        self.ledger = Ledger(folder / "ledger.duckdb")
        self.labels: list[int | None] = list(LABELS)
        self.cycle = 0

    def turn(self, turn: Turn) -> None:
        self.cycle += 1
        self.ledger.open_cycle(self.cycle, "d", {}, {}, "int")
        made = self.selected(turn)
        if made.size:
            self.ledger.add_proposal(made)
            decision = "reject" if turn.end == "rejected" else "approve"
            self.ledger.add_review(made.hash, decision, "ada", "cli")
            if decision == "approve":
                self.apply(made, undone=turn.end == "rolled back")
        if not made.size or turn.end != "rolled back":
            self.ledger.record_event(self.cycle, "promoted")
        if back := turn.back & self.changed():
            self.ledger.restore(back, "bob", "")
            self.labels = [LABELS[point] if point in back else label for point, label in enumerate(self.labels)]

    def selected(self, turn: Turn) -> Proposal:
        """As a cycle makes it: from scores of the points as they are now, and of the cycle before."""
        rows = [
            Row(point, influence, LABELS[point] if now is None else now, doubt, now is not None, GROUPS[point], other)
            for point, ((influence, doubt, other), now) in enumerate(zip(turn.scores, self.labels, strict=True))
        ]
        scores, before = self.folder / f"scores-{self.cycle}", self.folder / f"scores-{self.cycle - 1}"
        write(scores, rows)
        relabeled = {point: LABELS[point] for point in self.changed() if self.labels[point] is not None}
        resting = self.ledger.cooldown(self.cycle, self.rest)
        budgets = replace(self.budgets, cooldown=resting, relabeled=relabeled)
        found = select(scores, RULES, budgets, Regret(before, 3.0) if before.exists() else None)
        made = Proposal(self.cycle, found.rows, "d", "s", {"cycle": self.cycle})
        leave = sum(action != "restore" for action in found.rows["action"].to_pylist())
        assert leave <= self.budgets.cycle * sum(row.in_train for row in rows) + 1e-9
        assert not resting & set(made.points)
        return made

    def apply(self, made: Proposal, undone: bool) -> None:
        before = list(self.labels)
        self.ledger.apply_proposal(self.cycle, made.hash, MANIFEST, "e", "k")
        for row in made.rows.to_pylist():
            point = row["point_id"]
            self.labels[point] = {"remove": None, "relabel": row["new_label"], "restore": LABELS[point]}[row["action"]]
        self.check()
        if undone:
            self.ledger.roll_back(self.cycle, "rule:guardrail", "")
            self.labels = before

    def changed(self) -> set[int]:
        return {point for point, label in enumerate(self.labels) if label != LABELS[point]}

    def check(self) -> None:
        limits, changed = self.budgets, self.changed()
        assert set(self.ledger.removed_contents()) == {p for p, label in enumerate(self.labels) if label is None}
        assert len(changed) <= limits.cumulative * N + 1e-9
        assert sum(label is not None for label in self.labels) >= limits.minimum_kept
        assert not changed & limits.protected
        assert not {GROUPS[point] for point in changed} & limits.protected_groups
        for names, share, least in (
            (LABELS, limits.per_class, limits.minimum_per_class),
            (GROUPS, limits.per_group, 0),
        ):
            for name in {*names} - {None}:
                mine = {point for point in range(N) if names[point] == name}
                assert len(mine & changed) <= share * len(mine) + 1e-9
                assert len(mine - changed) >= min(least, len(mine))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIGHT)
@settings(
    max_examples=5, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(data=st.data(), cooldown=st.integers(0, 1), turns=st.lists(TURNS, min_size=3, max_size=5))
def test_whatever_is_applied_restored_or_rolled_back_stands_within_the_budget(
    name: str, data: st.DataObject, cooldown: int, turns: list[Turn]
) -> None:
    budgets = replace(ALL, **{name: data.draw(st.sampled_from(TIGHT[name]))})
    with tempfile.TemporaryDirectory() as folder:
        curated = Curated(Path(folder), budgets, cooldown)
        for turn in turns:
            curated.turn(turn)
            curated.check()
