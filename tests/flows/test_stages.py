"""Parts of a cycle that are plain functions of what they are given."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from flows.config import load
from flows.errors import BadInput
from flows.policies import rules_of
from flows.ranks.order import Order
from flows.recipe import save_points, steps_for
from flows.retraining import pruned, random_control
from flows.sections.curation import PruningConfig
from flows.sections.training import TrainingConfig
from flows.stages import Cycle, once
from flows.summary import KnownErrors, _known_errors
from storage.ledger import Ledger
from storage.points import Manifest, dataset_sha256
from storage.proposals import Proposal
from tests.flows.blobs import Blobs
from tests.flows.helpers import write_toml

LABELS = [row % 3 for row in range(60)]


@dataclass(frozen=True)
class Result:
    number: int
    paths: tuple[Path, ...]


@pytest.fixture
def cycle(tmp_path: Path) -> Cycle:
    """A cycle on 60 points that is open in a ledger; point 0 is protected, 1 and 2 were removed earlier."""
    config = load(write_toml(tmp_path, pruning={"protected": [0]}, review={"mode": "manual"}))
    content = [str(row) for row in range(60)]
    manifest = Manifest.build(range(60), content, content, LABELS)
    removed = frozenset([1, 2])
    digest = dataset_sha256(manifest, removed)
    tracker: Any = None
    cycle = Cycle(config, 1, manifest, removed, digest, {}, Ledger(tmp_path / "l.duckdb"), tracker, "", lambda _: None)
    cycle.ledger.open_cycle(1, digest, {}, {}, "int")
    return cycle


def test_a_stage_is_done_once_for_the_same_inputs_and_again_for_others(cycle: Cycle) -> None:
    calls: list[int] = []

    def work() -> Result:
        calls.append(len(calls))
        return Result(len(calls), (Path("/a"),))

    assert once(cycle, "stage", Result, {"a": 1}, work) == Result(1, (Path("/a"),))
    assert once(cycle, "stage", Result, {"a": 1}, work) == Result(1, (Path("/a"),))
    assert once(cycle, "other", Result, {"a": 1}, work).number == 2
    assert once(cycle, "stage", Result, {"a": 2}, work).number == 3
    assert len(calls) == 3


def test_once_removals_stand_in_the_ledger_what_led_to_them_is_not_computed_again(cycle: Cycle) -> None:
    once(cycle, "stage", Result, {"a": 1}, lambda: Result(1, ()))
    assert not cycle.applied
    cycle.ledger.record_event(1, "applied")
    assert cycle.applied
    assert once(cycle, "stage", Result, {"a": 2}, lambda: Result(2, ()), decided=cycle.applied).number == 1
    assert once(cycle, "new", Result, {"a": 2}, lambda: Result(2, ()), decided=cycle.applied).number == 2


def test_a_result_of_another_version_that_decisions_rest_on_is_refused_in_one_line(cycle: Cycle) -> None:
    once(cycle, "stage", Result, {"a": 1}, lambda: Result(1, ()))
    path = cycle.folder / "stages" / "stage.json"
    path.write_text(path.read_text().replace('"number"', '"count"'))
    with pytest.raises(BadInput, match=r"stage.json was written by another version of Tamis.*then upgrade"):
        once(cycle, "stage", Result, {"a": 2}, lambda: Result(2, ()), decided=True)
    assert once(cycle, "stage", Result, {"a": 2}, lambda: Result(2, ())).number == 2


def test_a_stage_whose_files_are_gone_is_done_again(cycle: Cycle) -> None:
    def there(result: Result) -> bool:
        return all(path.exists() for path in result.paths)

    lost = Result(1, (cycle.folder / "lost",))
    once(cycle, "stage", Result, {}, lambda: lost, intact=there)
    assert once(cycle, "stage", Result, {}, lambda: Result(2, ()), intact=there).number == 2


def test_a_stage_that_breaks_leaves_nothing_that_passes_for_a_result(cycle: Cycle) -> None:
    with pytest.raises(ZeroDivisionError):
        once(cycle, "stage", Result, {}, lambda: Result(1 // 0, ()))
    assert once(cycle, "stage", Result, {}, lambda: Result(5, ())).number == 5


def test_steps_cover_every_point_in_every_epoch() -> None:
    training = TrainingConfig(epochs=3, batch_size=32, ranks=1)
    assert [steps_for(training, points) for points in (1, 32, 33, 64)] == [3, 3, 6, 6]


def test_parameters_are_saved_at_the_shares_of_the_training_and_at_its_end() -> None:
    training = TrainingConfig(checkpoints=(0.01, 0.5, 1.0))
    assert save_points(training, 10) == (1, 5, 10)
    assert save_points(training, 1) == (1,)


def test_the_order_of_the_points_is_the_same_for_any_slicing_and_each_epoch_a_permutation() -> None:
    rows = torch.arange(100, 130)
    one, two = Order(rows, 8, seed=3), Order(rows, 8, seed=3)
    batches = [one.next() for _ in range(15)]  # 120 = 4 epochs of 30
    sliced = [torch.stack([batch[0::2], batch[1::2]], 1).flatten() for batch in (two.next() for _ in range(15))]
    assert torch.stack(batches).equal(torch.stack(sliced))
    for epoch in torch.cat(batches).split(30):
        assert epoch.sort().values.equal(rows)
    assert not Order(rows, 8, seed=4).next().equal(batches[0])


def test_the_random_control_removes_as_many_of_each_given_label_but_never_a_removed_or_protected_point(
    cycle: Cycle,
) -> None:
    points = [3, 6, 9, 4, 5, 8]
    draws = [random_control(cycle, points, seed) for seed in range(20)]
    for draw in draws:
        assert Counter(LABELS[int(point)] for point in draw) == Counter(LABELS[point] for point in points)
        assert len(set(draw)) == len(draw)
        assert not {0, 1, 2} & set(draw)
    assert random_control(cycle, points, 7) == draws[7]
    assert len({tuple(draw) for draw in draws}) == 20


def test_a_proposal_is_carried_out_on_what_is_removed_and_relabelled_already(cycle: Cycle) -> None:
    cycle = replace(cycle, relabeled={7: 1, 8: 2, 9: 0})
    rows = pa.table(
        {
            "point_id": [1, 3, 7, 8, 20],
            "action": ["restore", "remove", "restore", "remove", "relabel"],
            "new_label": pa.array([None, None, None, None, 2], pa.int32()),
            "reason": ["r"] * 5,
        }
    )
    proposal = Proposal(1, rows, cycle.dataset_sha256, "0" * 64, {})
    assert pruned(cycle, proposal) == ({2, 3, 8}, {9: 0, 20: 2})
    assert (cycle.removed, cycle.relabeled) == ({1, 2}, {7: 1, 8: 2, 9: 0}), "the baseline keeps what it had"


def test_each_policy_becomes_a_rule_over_its_column_of_q_values() -> None:
    rates = {"harmful": 0.15, "mislabeled": 0.1, "memorized": 0.3}
    asked = PruningConfig(policies=tuple(rates), **{f"{policy}_q": rate for policy, rate in rates.items()})
    rules = {rule.policy: rule for rule in rules_of(asked)}
    assert rules.keys() == rates.keys()
    for policy, rule in rules.items():
        rate = rates[policy]
        assert (rule.column, rule.op, rule.threshold) == (f"{policy}_q", "<=", rate)
        assert rule.parameters == {"q": rate}
    [only] = rules_of(PruningConfig(policies=("mislabeled",)))
    assert only.policy == "mislabeled"


def test_known_errors_are_counted_on_the_points_in_training(cycle: Cycle) -> None:
    workload: Any = Blobs()
    true = dict(enumerate(LABELS)) | {1: 2, 10: 0, 11: 0, 12: 1}  # 10 and 11 were 1 and 2, 12 was 0; 1 is removed
    workload.truth = lambda: true
    assert _known_errors(cycle, workload, {10, 11, 20}) == KnownErrors(3, 2, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert _known_errors(cycle, workload, set()) == KnownErrors(3, 0, None, 0.0)
    workload.truth = lambda: dict(enumerate(LABELS))
    assert _known_errors(cycle, workload, {10}) == KnownErrors(0, 0, 0.0, None)
    blind: Any = object()
    assert _known_errors(cycle, blind, {10}) is None
