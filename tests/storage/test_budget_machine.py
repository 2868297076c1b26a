"""Any sequence of decisions on proposals that are selected within budgets: what stands is within every one of them."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from storage.budgets import Budgets
from storage.policies import Regret, Rule
from storage.records import Terms
from storage.selection import select
from tests.storage.score_tables import HARMFUL, Row, write
from tests.storage.test_ledger_machine import FUSE, SELDOM, TERMS, Decisions, N, examples

LABELS = [0, 0, 0, 0, 0, 1, 1, 1]
GROUPS = ["a", "a", "b", "b", None, "a", "b", None]
RULES = [HARMFUL, Rule("mislabeled", "mislabeled", "suspicion", ">=", 0.5, relabel="suggested")]
SHARES = st.sampled_from([0.25, 1 / 3, 0.5, 2 / 3, 1.0])
BUDGETS = st.builds(
    Budgets,
    cycle=SHARES,
    cumulative=SHARES,
    per_class=SHARES,
    per_group=SHARES,
    minimum_kept=st.integers(1, 6),
    minimum_per_class=st.integers(0, 3),
    protected=st.frozensets(st.integers(0, N - 1), max_size=1),
    protected_groups=st.sampled_from([frozenset(), frozenset(), frozenset({"b"})]),
)
SCORES = st.tuples(st.sampled_from([-2.0, -1.0, 1.0]), st.sampled_from([0.0, 0.0, 1.0]), st.integers(0, 2))
"""Influence, suspicion and suggested label."""


class Bounded(Decisions):
    """Every proposal is made as a cycle makes it: from scores of the points as they are, and of the cycle before."""

    @initialize(budgets=BUDGETS, cooldown=st.integers(0, 1))
    def settle(self, budgets: Budgets, cooldown: int) -> None:
        self.budgets, self.cooldown = budgets, cooldown
        self.scored: dict[int, Path] = {}

    @precondition(lambda self: self.phase in ("open", "proposed"))
    @rule(scores=st.lists(SCORES, min_size=N, max_size=N), terms=TERMS, again=SELDOM, fuse=FUSE)
    def propose(self, scores: list[tuple[float, float, int]], terms: Terms, again: bool, fuse: int | None) -> None:
        if self.phase == "proposed" and not again:
            return
        found = [self.state(point, self.cycle - 1) for point in range(N)]
        rows = [
            Row(point, influence, label, suspicion, action != "remove", GROUPS[point], suggested)
            for point, ((influence, suspicion, suggested), (action, new)) in enumerate(zip(scores, found, strict=True))
            for label in [LABELS[point] if new is None else new]
        ]
        folder = write(Path(self.folder.name) / f"scores-{self.cycle}-{self.made}", rows)
        before = self.scored.get(self.cycle - 1)
        given = {point: LABELS[point] for point, (action, _) in enumerate(found) if action == "relabel"}
        budgets = self.within(given)
        selection = select(folder, RULES, budgets, Regret(before, 3.0) if before else None)
        self.scored[self.cycle] = folder
        actions = selection.rows["action"].to_pylist()
        in_train = sum(row.in_train for row in rows)
        leave = sum(action != "restore" for action in actions)
        assert leave <= self.budgets.cycle * in_train + 1e-9
        assert in_train - leave >= min(self.budgets.minimum_kept, in_train)
        assert not self.resting() & set(selection.rows["point_id"].to_pylist())
        if actions:
            self.offer(selection.rows, terms, fuse)

    def within(self, given: dict[int, int]) -> Budgets:
        """The budgets, for points that stand relabelled."""
        rest = self.ledger.cooldown(self.cycle, self.cooldown)
        return replace(self.budgets, cooldown=rest, relabeled=given)

    def resting(self) -> set[int]:
        """What came back, or was rolled back, in the cycle before, if there is a cooldown."""
        return {
            point
            for point, entries in self.history.items()
            for cycle, action, _, how in entries
            if self.cooldown and cycle == self.cycle - 1 and (action == "restore" or how == "undo")
        }

    @invariant()
    def what_stands_is_within_every_budget(self) -> None:
        limits, changed = self.budgets, set(self.changed())
        assert len(changed) <= limits.cumulative * N + 1e-9
        assert len(changed) <= N - min(limits.minimum_kept, N)
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
def test_whatever_is_applied_restored_or_rolled_back_stands_within_every_budget() -> None:
    examples(Bounded, 8)
