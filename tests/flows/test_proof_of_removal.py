"""What surrounds the guardrail in a cycle: preview, rounds of seeds, looks at a holdout set, savings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

import flows.guardrail
import flows.retraining
from flows.config import load
from flows.foreseen import INFLUENCE, METHODS, UNLEARNING, foreseen
from flows.guardrail import Verdict
from flows.plans import QUERIES
from flows.pruning import Proposed
from flows.retraining import Retrained, arms_of, for_load, for_load_alone
from flows.savings import Savings
from flows.spent import Spent
from flows.stores import ledger_of
from flows.tables import print_summary
from storage.files import read_json
from storage.proposals import Proposal
from tests.flows.helpers import turn, write_toml

RECIPE = {"batch_size": 12}  # 10 steps an epoch; 9 without the 12 wrong labels


class Broke(Exception):
    pass


def result(folder: Path, stage: str, kind: type) -> Any:
    return TypeAdapter(kind).validate_python(read_json(folder / "stages" / f"{stage}.json")["result"])


@pytest.mark.slow
def test_a_proposal_is_foretold_on_the_queries_before_its_review_and_the_truth_stands_beside_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_toml(here, training=RECIPE)
    waiting = turn(file, dry_run=True)
    assert [one.method for one in waiting.foreseen] == list(METHODS)
    assert all(one.real is None for one in waiting.foreseen)
    cycle = here / "ws/cycles/000001"
    assert not (cycle / "scores/unfinished").exists(), "the curvature that was kept for it has gone"
    [preview] = cycle.glob("preview-*.parquet")
    first = preview.read_bytes()

    summary = turn(file)
    assert preview.read_bytes() == first, "it is not made again"
    step = next(one for one in summary.foreseen if one.method == INFLUENCE)
    assert step.real is not None
    assert step.predicted.loss.mean < 0, "the wrong labels harm the queries"
    assert step.real.loss.mean < 0, "and so it is without them"
    assert step.correlation is not None
    assert step.correlation > 0.5, "240 parameters, 10 % of the points: the direction, not the length"
    assert "of scoring" in summary.preview
    assert summary.savings is not None
    assert (summary.savings.steps, summary.savings.measured) == (25, False)
    assert summary.savings.spent is not None
    print_summary(summary, as_json=False)
    said = capsys.readouterr().out
    html = summary.report.read_text()
    for part in (
        f"foretold, {INFLUENCE}",
        "2 seeds, all 2 seeds were compared; look 1",
        "scoring, preview and proof took",
    ):
        assert part in said
    for part in ("was foretold to do", UNLEARNING, "all 2 seeds were compared", "repaid by"):
        assert part in html


@pytest.mark.slow
def test_rounds_of_seeds_that_are_killed_go_on_and_redundant_points_mean_fewer_steps(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_toml(here, training=RECIPE, guardrail={"seeds": 3, "resamples": 400})
    monkeypatch.setattr(flows.retraining, "for_load", lambda _: True)
    monkeypatch.setattr("flows.savings.for_load", lambda _: True)
    compare, train_jobs, calls = flows.guardrail.compare, flows.retraining.train_jobs, list[int]()

    def undecided(*given: Any) -> Verdict:
        verdict = compare(*given)
        return replace(verdict, promote="", stopped="") if verdict.seeds == 2 else verdict

    def breaks(cycle: Any, jobs: Any, logs: Path) -> Spent:
        calls.append(len(jobs))
        if len(calls) == 2:
            train_jobs(cycle, jobs[:1], logs)
            raise Broke
        return train_jobs(cycle, jobs, logs)

    monkeypatch.setattr(flows.guardrail, "compare", undecided)
    monkeypatch.setattr(flows.retraining, "train_jobs", breaks)
    with pytest.raises(Broke):
        turn(file)
    summary = turn(file)
    assert calls == [5, 3, 2], "the arms of a round together, and of a round that was broken off what is missing"
    folder = here / "ws/cycles/000001"
    retrained = result(folder, "retrain-3", Retrained)
    assert retrained.seeds == (0, 1, 2)
    assert dict(retrained.steps) == {"baseline": 250, "challenger": 225, "control": 225}
    assert retrained.spent is not None
    assert not retrained.spent.anew
    assert not read_json(folder / "stages/judge-2.json")["result"]["stopped"]
    assert summary.proof.startswith("3 seeds, all 3 seeds were compared")
    if summary.savings is not None:  # of a cycle that was promoted, and where fewer steps took less time
        assert (summary.savings.measured, summary.savings.spent) == (True, None)


@pytest.mark.slow
def test_a_holdout_set_that_has_decided_often_enough_decides_nothing_more(here: Path) -> None:
    file = write_toml(here, guardrail={"max_looks": 1, "seeds": 2}, pruning={"cooldown": 0})
    first = turn(file)
    [judged] = [event for event in ledger_of(load(file)).events(1) if event.state == "judged"]
    assert judged.detail["look"] == 1
    ledger = ledger_of(load(file))
    ledger.restore(ledger.removed_as_of(), "ada", "again")
    second = turn(file)
    assert (second.state, second.removed, second.champion) == ("rolled_back", 0, first.champion)
    assert second.proposed == first.proposed
    assert "guardrail.max_looks = 1" in second.reason
    assert "fresh" in second.reason
    events = [event.state for event in ledger_of(load(file)).events(2)]
    assert "retrained" not in events, "no arm is trained for nothing"
    assert "judged" not in events
    assert not second.arms


def test_a_saving_is_paid_for_after_as_many_trainings_as_it_takes() -> None:
    saving = Savings(steps=10, cpu_seconds=4.0, measured=False, spent=21.0)
    assert saving.cycles == 6
    assert saving.said == (
        "10 steps, 4.0 CPU s at the same epochs (computed; the arms of this cycle took equal steps); scoring, "
        "preview and proof took 21.0 CPU s, repaid by 6 such trainings"
    )
    assert Savings(10, 4.0, True, None).said == "10 steps, 4.0 CPU s at the same epochs (measured)"


def test_points_are_left_out_for_load_where_any_reason_is_that_and_for_it_alone_where_all_are() -> None:
    def proposal(*reasons: str) -> Proposal:
        return Proposal(1, pa.table({"reason": pa.array(reasons, pa.string())}), "", "", {})

    assert for_load(proposal("harmful", "harmful+redundant"))
    assert for_load(proposal("harmful", "redundant: copy of 7"))
    assert for_load(proposal("harmful", "balanced"))
    assert not for_load(proposal("harmful", "mislabeled"))
    assert for_load_alone(proposal("redundant", "redundant: copy of 7"))
    assert for_load_alone(proposal("balanced", "balanced+redundant: copy of 7"))
    for other in ("harmful", "harmful+redundant", "balanced+mislabeled", "regret"):
        assert not for_load_alone(proposal("redundant", other))
    assert not for_load_alone(proposal())


@pytest.mark.parametrize("actions", [{"remove": 3}, {"relabel": 3}, {"remove": 1, "restore": 2}, {"restore": 3}])
def test_a_control_is_trained_unless_points_only_come_back(actions: dict[str, int]) -> None:
    proposed = Proposed("h", 3, {}, {}, 9, 6, 3, actions)
    control = ("control",) if actions.keys() != {"restore"} else ()
    assert arms_of(proposed) == ("baseline", "challenger", *control)


def test_what_two_launches_spent_is_their_sum() -> None:
    one = Spent({"start": 1.0, "scoring": 2.0}, 3.0, 5, 100, 0, anew=True)
    two = Spent({"start": 0.5}, 0.5, 7, 200, 0, anew=False)
    assert one + two == Spent({"start": 1.5, "scoring": 2.0}, 3.5, 12, 200, 0, anew=False)


def test_predictions_are_compared_query_by_query_with_the_mean_over_seeds(tmp_path: Path) -> None:
    before, change = [1.0, 2.0, 3.0], [-0.5, 0.0, 0.5]
    asked = {"point_id": [4, 5, 6], "label": [0, 1, 0]}
    table = asked | {"loss": before, "correct": [False] * 3, "correct_influence_step": [True, False, False]}
    table |= {"loss_influence_step": [b + c for b, c in zip(before, change)]}
    pq.write_table(pa.table(table), tmp_path / "preview.parquet")
    for arm, sign in (("baseline", 0.0), ("challenger", 2.0)):
        for seed, noise in enumerate((0.1, -0.1)):
            losses = [b + sign * c + noise * (arm == "challenger") for b, c in zip(before, change)]
            (tmp_path / f"{arm}{seed}").mkdir()
            columns = asked | {"loss": losses, "correct": [arm == "challenger"] * 3}
            pq.write_table(pa.table(columns), tmp_path / f"{arm}{seed}" / QUERIES)
    folders = tuple([tmp_path / f"{arm}{seed}" for seed in range(2)] for arm in ("baseline", "challenger"))
    [found] = foreseen(tmp_path / "preview.parquet", folders)
    assert found.correlation == pytest.approx(1.0)
    assert found.real is not None
    assert (found.predicted.loss.mean, found.real.loss.mean) == pytest.approx((0.0, 0.0))
    assert (found.predicted.accuracy, found.real.accuracy) == pytest.approx((1 / 3, 1.0))
    [alone] = foreseen(tmp_path / "preview.parquet", None)
    assert (alone.real, alone.correlation) == (None, None)
    pq.write_table(pa.table(columns | {"label": [0, 1, 1]}), folders[1][1] / QUERIES)
    assert foreseen(tmp_path / "preview.parquet", folders) == (alone,), "a query was mended since"
