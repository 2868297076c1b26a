"""Whole cycles. One on `tiny` as users run it: a process, two ranks; the others inside this process, on known data."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from flows.check import require
from flows.config import Config, load
from flows.cycle import run_cycle
from flows.dataset import manifest_of
from flows.decision import Act, decide
from flows.inspection import status_of
from flows.restoration import Choice, restore
from flows.stores import ledger_of
from flows.workloads.tiny import Tiny
from storage.errors import StaleApproval
from storage.ledger import Ledger
from storage.points import Manifest, PointId, dataset_sha256
from storage.proposals import Proposal
from tests.flows.helpers import tamis, turn, write_toml


@dataclass(frozen=True)
class Told:
    """Where the four tellers of a cycle can be asked."""

    file: Path
    config: Config
    ledger: Ledger
    json: dict[str, Any]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.config.workspace / 'mlflow.db'}")

    def runs(self, where: str) -> list[Run]:
        [experiment] = [one for one in self.client.search_experiments() if one.name == self.config.name]
        return list(self.client.search_runs([experiment.experiment_id], where))

    @property
    def run(self) -> Run:
        [run] = self.runs(f"tags.`tamis.cycle` = '{self.json['cycle']}'")
        return run


def told(file: Path, summary: dict[str, Any]) -> Told:
    return Told(file, load(file), ledger_of(load(file)), summary)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A cycle of the built-in `tiny`, run by the command on two ranks, approved by a rule."""
    file = tmp_path_factory.mktemp("tiny") / "a path" / "tamis.toml"
    write_toml(
        file.parent,
        "tiny",
        training={"ranks": 2, "epochs": 15, "batch_size": 64},
        scoring={"ranks": 2, "chunk": 64},
        guardrail={"seeds": 2, "group_tolerance": 0.5},
    )
    done = tamis("run", file, "--json")
    assert done.returncode == 0, done.stderr
    return told(file, json.loads(done.stdout))


def test_the_cycle_ends_as_its_report_its_ledger_mlflow_and_its_json_all_say(tiny: Told) -> None:
    state = tiny.json["state"]
    assert state in ("promoted", "rolled_back")
    assert tiny.ledger.state(1) == state
    tags = tiny.run.data.tags
    assert f"Cycle 1: {state.replace('_', ' ')}" in tags["mlflow.note.content"]
    assert tiny.run.info.status == "FINISHED"
    assert tags["tamis.ledger_head"] == tiny.ledger.head()
    assert tiny.ledger.verify(tags["tamis.ledger_head"]).holds
    html = Path(tiny.json["report"]).read_text()
    proposal = tiny.ledger.proposal(1)
    assert proposal is not None
    assert tiny.json["proposal"] == tags["tamis.proposal"] == proposal.hash
    assert proposal.hash[:12] in html
    assert state.replace("_", " ") in html
    assert tags["tamis.review"].startswith(f"approve:{proposal.hash[:12]}")
    assert tiny.json["proposed"] == proposal.size == Proposal.read(Path(tiny.json["report"]).parent).size > 0
    removed = tiny.ledger.removed_as_of()
    assert len(removed) == tiny.json["removed"] == (proposal.size if state == "promoted" else 0)
    assert tiny.run.data.metrics["removed"] == len(removed)
    assert re.search(r"Scoring: .* points/s, .* CPU s, .* MB between ranks\.", tags["mlflow.note.content"])


def test_every_stage_left_its_event_in_order(tiny: Told) -> None:
    states = [event.state for event in tiny.ledger.events(1)]
    middle = ["trained", "scored", "proposed", "approved", "applied", "retrained", "judged"]
    assert states == ["opened", *middle, tiny.json["state"]]


def test_mlflow_shows_the_arms_the_scores_the_report_the_data_and_the_champion(tiny: Told) -> None:
    nested = tiny.runs(f"tags.`mlflow.parentRunId` = '{tiny.run.info.run_id}'")
    arms = {(run.data.tags["tamis.arm"], run.data.tags["tamis.seed"]): run.data.metrics for run in nested}
    assert len(arms) == len(nested) == 6
    assert {arm for arm, _ in arms} == {"baseline", "challenger", "control"} == tiny.json["arms"].keys()
    for arm, outcome in tiny.json["arms"].items():
        mean = (arms[arm, "0"]["holdout_loss"] + arms[arm, "1"]["holdout_loss"]) / 2
        assert mean == pytest.approx(outcome["loss"]["mean"], rel=1e-12)
    names = {
        item.path
        for folder in ("scores", "review")
        for item in tiny.client.list_artifacts(tiny.run.info.run_id, folder)
    }
    assert {"review/00_report.html", "review/suspicious.json", "review/holdout.png"} <= names
    assert any(name.endswith(".parquet") for name in names)
    assert len([name for name in tiny.run.data.metrics if not name.startswith("system/")]) <= 15
    assert len(tiny.run.inputs.dataset_inputs) == 1
    champion = tiny.client.get_model_version_by_alias("tiny", "champion")
    assert int(champion.version) == tiny.json["champion"]
    assert champion.run_id == tiny.run.info.run_id


def test_the_data_set_of_the_cycle_is_rebuilt_from_manifest_and_ledger(tiny: Told) -> None:
    manifest = Manifest.read(Path(tiny.json["report"]).parent / "manifest.parquet")
    rebuilt = dataset_sha256(manifest, tiny.ledger.removed_as_of(0))
    assert rebuilt == tiny.ledger.cycle(1).dataset_sha256 == tiny.run.data.tags["tamis.dataset_sha256"]
    assert rebuilt == tiny.json["dataset_sha256"]
    assert dataset_sha256(manifest_of("train", Tiny().points())) == rebuilt


def test_the_same_seed_gives_the_same_proposal_in_another_workspace(tiny: Told, here: Path) -> None:
    """In one process on one rank instead of two: neither the workspace nor the ranks may enter the proposal."""
    other = write_toml(
        here,
        "tiny",
        training={"ranks": 1, "epochs": 15, "batch_size": 64},
        scoring={"ranks": 1, "chunk": 64},
        guardrail={"seeds": 2},
    )
    again = turn(other, dry_run=True)
    assert again.state == "proposed"
    assert (again.proposal, again.proposed) == (tiny.json["proposal"], tiny.json["proposed"])


def test_json_goes_to_standard_output_alone_and_tables_are_for_people(tiny: Told) -> None:
    status = json.loads(tamis("status", tiny.file, "--json").stdout)
    assert (status["cycle"], status["state"]) == (1, tiny.json["state"])
    log = json.loads(tamis("ledger", "log", "--file", tiny.file, "--json").stdout)
    assert [row["state"] for row in log[::-1]] == [event.state for event in tiny.ledger.events(1)]


def cycle_with(folder: Path, **options: Any) -> tuple[Path, Any]:
    file = write_toml(folder, options=options)
    return file, turn(file)


def test_wrong_labels_that_hurt_are_removed_and_the_challenger_is_promoted(here: Path) -> None:
    file, summary = cycle_with(here)
    assert (summary.state, summary.proposed, summary.removed) == ("promoted", 12, 12)
    assert summary.known_errors is not None
    assert (summary.known_errors.precision, summary.known_errors.recall) == (1.0, 1.0)
    known = told(file, {"cycle": 1})
    assert known.ledger.removed_as_of() == frozenset(range(12))
    why = known.ledger.why("3")
    assert why.removed
    action = why.removal
    assert action is not None
    proposal = Proposal.read(here / "ws/cycles/000001")
    assert (action.cycle, action.proposal, action.actor) == (1, proposal.hash, "rule:auto")
    assert action.estimator is not None
    assert "ekfac" in action.estimator
    assert action.checkpoint_digest
    line = tamis("ledger", "why", 3, "--file", file).stdout
    for part in ("cycle 1", "score", "threshold", action.estimator, action.checkpoint_digest[:12], proposal.hash[:12]):
        assert part in line
    assert "rule:auto" in line

    assert restore(file, Choice(points=("3",)), "ada", "it is right").startswith("1 point restored")
    assert known.ledger.removed_as_of() == frozenset(range(12)) - {3}
    assert [row.action for row in known.ledger.why("3").actions] == ["remove", "restore"], "a row, never a delete"

    second = turn(file)
    assert second.cycle == 2
    assert second.in_train == 109
    assert 3 not in Proposal.read(here / "ws/cycles/000002").points, "a restored point is left alone for a while"
    manifest = Manifest.read(here / "ws/cycles/000002/manifest.parquet")
    gone: frozenset[PointId] = frozenset(range(12)) - {3}
    assert dataset_sha256(manifest, gone) == known.ledger.cycle(2).dataset_sha256
    left = (here / "ws/cycles/000001/checkpoints").glob("*/step-*")
    assert {path.parent.name.partition("-")[0] for path in left} == {"baseline"}, "the others are of an older cycle now"
    assert action.checkpoint_digest in known.ledger.cited_checkpoints()


def test_removals_that_do_not_prove_themselves_are_restored_and_the_cycle_says_why(here: Path) -> None:
    file, summary = cycle_with(here, perverse=True)
    assert (summary.state, summary.proposed, summary.removed) == ("rolled_back", 12, 0)
    assert "challenger - baseline" in summary.reason
    known = told(file, {"cycle": 1})
    assert known.ledger.removed_as_of() == frozenset()
    assert known.ledger.state(1) == "rolled_back"
    assert [row.action for row in known.ledger.why("0").actions] == ["remove", "restore"]
    second = turn(file)
    assert (second.state, second.proposed) == ("nothing_to_do", 0), "rolled back points rest for `cooldown` cycles"


def test_an_empty_proposal_ends_the_cycle_without_retraining(here: Path) -> None:
    file = write_toml(here, options={"wrong": 0}, pruning={"mislabeled_q": 1e-6, "harmful_q": 1e-6})
    summary = turn(file)
    assert (summary.state, summary.proposed) == ("nothing_to_do", 0)
    assert summary.arms.keys() == {"baseline"}
    models = {path.name.split("-")[0] for path in (here / "ws/cycles/000001/checkpoints").iterdir()}
    assert models == {"baseline"}
    assert summary.champion == 1, "the baseline is the first champion"
    known = told(file, {"cycle": 1})
    assert known.ledger.state(1) == "nothing_to_do"
    assert known.run.info.status == "FINISHED"


@pytest.mark.slow
def test_the_command_leaves_with_0_where_there_is_nothing_to_do(tmp_path: Path) -> None:
    file = write_toml(tmp_path, options={"wrong": 0}, pruning={"mislabeled_q": 1e-6, "harmful_q": 1e-6})
    done = tamis("run", file, "--json")
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "nothing_to_do")


@pytest.fixture
def waiting(here: Path) -> tuple[Path, str]:
    """A cycle that waits for a person, and its proposal's hash."""
    file = write_toml(here, options={"marker": str(here / "moved")}, review={"mode": "manual"})
    summary = turn(file)
    assert summary.state == "awaiting_review"
    return file, summary.proposal


def decided(file: Path, proposal: str, decision: Any = "approve", by: str = "ada") -> None:
    decide(file, Act(proposal, decision, by, f"tamis {decision}"))


def test_a_manual_cycle_waits_then_an_approval_that_carries_the_hash_continues_it(waiting: tuple[Path, str]) -> None:
    file, proposal = waiting
    again = turn(file)
    assert (again.cycle, again.state, again.proposal) == (1, "awaiting_review", proposal)
    assert status_of(file).next_command == again.next_commands[0]
    refused = tamis("approve", "0" * 64, "--by", "ada", "--file", file)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "000000000000" in refused.stderr
    with pytest.raises(StaleApproval):
        decided(file, "0" * 12)
    assert told(file, {}).ledger.state(1) == "awaiting_review"
    decided(file, proposal[:12])
    done = turn(file)
    assert (done.cycle, done.state, done.removed) == (1, "promoted", 12)
    removal = told(file, {}).ledger.why("0").removal
    assert removal is not None
    assert removal.actor == "ada"
    with pytest.raises(StaleApproval):
        decided(file, proposal)


def test_points_struck_out_while_the_cycle_is_at_work_leave_it_to_go_on_with_the_others(here: Path) -> None:
    file = write_toml(here, review={"mode": "manual"})
    config, struck = load(file), list[str]()

    def step(stage: Any, *args: Any) -> Any:
        if stage.__name__ == "review" and not struck:
            proposal = Proposal.read(config.workspace / "cycles/000001")
            struck.append(str(proposal.points[0]))
            decide(file, Act(proposal.hash, "approve", "ada", "tamis approve", "", tuple(struck)))
        return stage(*args)

    summary = run_cycle(config, require(config), step, lambda _: None)
    assert summary.proposed == 11
    assert "failed" not in [event.state for event in ledger_of(config).events(1)]
    assert ledger_of(config).state(1) in ("promoted", "rolled_back")


def test_a_rejected_proposal_removes_nothing_and_rests(waiting: tuple[Path, str]) -> None:
    file, proposal = waiting
    decided(file, proposal, "reject")
    with pytest.raises(StaleApproval):
        decided(file, proposal, by="bob")
    summary = turn(file)
    assert (summary.state, summary.removed) == ("nothing_to_do", 0)
    assert "reject" in summary.decision
    assert told(file, {}).ledger.removed_as_of() == frozenset()
    assert turn(file).proposed == 0, "rejected points rest for `cooldown` cycles"


def test_data_that_move_while_a_cycle_is_open_close_it_and_open_the_next(waiting: tuple[Path, str]) -> None:
    file, proposal = waiting
    (file.parent / "moved").touch()
    summary = turn(file)
    assert (summary.cycle, summary.state) == (2, "awaiting_review")
    assert summary.proposal != proposal
    first = told(file, {"cycle": 1})
    assert first.ledger.state(1) == "rolled_back"
    assert "changed while the cycle was open" in str(first.ledger.events(1)[-1].detail)
    assert first.run.info.status == "FAILED", "a closed cycle's run does not stay open"
    with pytest.raises(StaleApproval):
        decided(file, proposal)


def test_another_budget_makes_another_proposal_that_needs_its_own_approval(
    waiting: tuple[Path, str],
) -> None:
    file, proposal = waiting
    file.write_text(file.read_text().replace("[pruning]", "[pruning]\nbudget = 0.05"))
    summary = turn(file)
    assert (summary.cycle, summary.state) == (1, "awaiting_review")
    assert summary.proposal != proposal
    with pytest.raises(StaleApproval):
        decided(file, proposal)


def test_a_dry_run_stops_at_the_proposal_and_the_next_run_continues_from_there(here: Path) -> None:
    file = write_toml(here)
    dry = turn(file, dry_run=True)
    assert (dry.state, dry.proposed, dry.removed) == ("proposed", 12, 0)
    trained = (here / "ws/cycles/000001/stages/train.json").read_bytes()
    done = turn(file)
    assert (done.cycle, done.state, done.proposal) == (1, "promoted", dry.proposal)
    assert (here / "ws/cycles/000001/stages/train.json").read_bytes() == trained


def test_a_cycle_that_breaks_says_so_and_the_same_command_continues_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_toml(here)
    with monkeypatch.context() as broken:
        broken.setattr("flows.pruning.select", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            turn(file)
    known = told(file, {"cycle": 1})
    assert known.ledger.state(1) == "failed"
    assert "ZeroDivisionError" in str(known.ledger.events(1)[-1].detail)
    assert known.run.info.status == "FAILED"
    assert turn(file).state == "promoted"
    assert known.run.info.status == "FINISHED"


def test_protected_points_stay_whatever_their_scores(here: Path) -> None:
    summary = turn(write_toml(here, pruning={"protected": [0, 1]}))
    assert summary.proposed == 10
    assert summary.dropped == {"protected": 2}


def test_a_budget_of_a_few_points_is_held(here: Path) -> None:
    summary = turn(write_toml(here, pruning={"budget": 0.05}))  # of 120
    assert (summary.proposed, summary.removed) in ((6, 6), (6, 0))
    assert summary.dropped == {"cycle": 6}
