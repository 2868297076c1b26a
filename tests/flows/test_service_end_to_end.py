"""The service as a team lives with it: servers that are started once, a schedule, and a reviewer in MLflow's UI."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from flows.config import load
from flows.stores import ledger_of
from storage.proposals import Proposal
from tests.flows.helpers import write_toml
from tests.services import Service
from tests.stack import Served, address, ended, servers, serving, state_of
from tests.storage.browser import Browser, browser, installed
from tests.storage.mlflow_page import RunPage

pytestmark = [pytest.mark.service, pytest.mark.timeout(3000)]

EVERY_MINUTE = 1 / 60
SECONDS = 1 / 3600
SETTINGS: dict[str, Any] = {
    "dataset": "digits",
    "orchestrator": "prefect",
    "training": {"epochs": 20, "batch_size": 64},
    "scoring": {"folds": 2, "neighbours": 5, "probe": 0},
    "pruning": {"mislabeled_q": 0.4, "harmful_q": 0.4, "cooldown": 0},
    "guardrail": {"seeds": 3, "resamples": 100, "tolerance": 0.1, "group_tolerance": 1.0},
    "service": {"every_hours": EVERY_MINUTE, "poll_seconds": 1.0},
}


@dataclass
class Desk:
    """What a reviewer sees, and what the team's servers and the ledger say."""

    file: Path
    served: Served
    mlflow: Service
    browser: Browser
    shots: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(address(self.mlflow))

    def proposed(self, cycle: int) -> str:
        """Wait for a cycle's proposal; its hash."""
        self.served.until(lambda: state_of(self.file, cycle) == "awaiting_review", f"proposal {cycle}")
        proposal = ledger_of(load(self.file)).proposal(cycle)
        assert proposal is not None
        how = f"approve:{proposal.hash[:12]}"
        self.served.until(lambda: how in self.tags(cycle).get("mlflow.note.content", ""), "the page to say how")
        return proposal.hash

    def page(self, cycle: int) -> RunPage:
        """The page of a cycle's run, loaded anew."""
        run = self.tags(cycle)
        return RunPage(self.browser, address(self.mlflow), run["experiment"], run["run"])

    def tags(self, cycle: int) -> dict[str, str]:
        """The tags of a cycle's run, and which it is."""
        run = self.client.get_run(str(ledger_of(load(self.file)).cycle(cycle).mlflow_run_id))
        return {**run.data.tags, "run": run.info.run_id, "experiment": run.info.experiment_id}

    def removed(self) -> frozenset[Any]:
        return ledger_of(load(self.file)).removed_as_of()

    def states(self, cycle: int) -> list[str]:
        return [event.state for event in ledger_of(load(self.file)).events(cycle)]

    def champion(self) -> int:
        return int(self.client.get_model_version_by_alias("digits", "champion").version)


def settings(folder: Path, mlflow: Service, **review: Any) -> Path:
    given = SETTINGS | {"servers": {"mlflow": address(mlflow)}, "review": {"mode": "manual", **review}}
    return write_toml(folder, "digits", {"rate": 0.3}, **given)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    assert installed(), "Chromium is not installed; `make browser` installs it"
    shots = tmp_path / "shots"
    shots.mkdir()
    with servers(tmp_path) as team:
        file = settings(tmp_path / "digits", team.mlflow)
        with serving(Served([file], team.prefect)) as served, browser(tmp_path / "profile") as reviewer:
            yield Desk(file, served, team.mlflow, reviewer, shots)


def test_scheduled_cycles_are_approved_rejected_or_expire_in_mlflows_ui_and_nobody_types_a_command(desk: Desk) -> None:
    approved = _approved(desk)
    _an_old_approval_then_a_rejection(desk, approved)
    _expired(desk)
    assert desk.served.end() == 0
    assert desk.served.left() == []
    assert ledger_of(load(desk.file)).verify().holds


def _approved(desk: Desk) -> str:
    """The first cycle: a click and a typed tag are all that leads from the proposal to a new champion."""
    proposal = desk.proposed(1)
    assert [run["auto_scheduled"] for run in desk.served.runs(desk.file)][:1] == [True]
    page = desk.page(1)
    page.unfold()
    page.says(f"approve:{proposal[:12]}")
    page.page.screenshot(desk.shots / "review-run.png")
    page.set_tag("tamis.review", f"approve:{proposal[:12]}", desk.shots / "review-tag.png")
    desk.served.until(lambda: ended(desk.file, 1), "the approved cycle to end")

    ledger = ledger_of(load(desk.file))
    points = frozenset(Proposal.read(load(desk.file).workspace / "cycles/000001").points)
    assert desk.states(1)[-6:] == ["awaiting_review", "approved", "applied", "retrained", "judged", "promoted"]
    assert desk.removed() == points
    assert len(points) == 150
    review = ledger.review(1, proposal)
    assert review is not None
    assert (review.decision, review.actor) == ("approve", "mlflow:unauthenticated")
    assert review.how == "MLflow tag tamis.review of the run"
    why = ledger.why(next(iter(points)))
    assert why.removal is not None
    assert (why.removal.proposal, why.removal.actor) == (proposal, "mlflow:unauthenticated")
    assert desk.tags(1)["tamis.review"] == f"approve:{proposal[:12]}"
    arms = desk.client.search_runs([desk.tags(1)["experiment"]], "tags.`tamis.arm` = 'challenger'")
    assert len(arms) >= 2, "the retraining has a run for each seed"
    [link] = desk.served.ask("artifacts/filter", artifacts={"key": {"any_": ["tamis-run"]}}, limit=1)
    assert f"/runs/{desk.tags(1)['run']}" in link["data"], "Prefect's page leads to MLflow's"
    assert desk.champion() == 2, "the first version is the baseline's, whose page is one of the review"
    return proposal


def _an_old_approval_then_a_rejection(desk: Desk, old: str) -> None:
    """The second cycle: what was written about another proposal is answered on the page; then it is rejected."""
    proposal, before, champion = desk.proposed(2), desk.removed(), desk.champion()
    assert proposal != old
    desk.page(2).set_tag("tamis.review", f"approve:{old[:12]}")
    desk.served.until(lambda: desk.tags(2).get("tamis.review_refused"), "an answer to the old approval")
    page = desk.page(2)
    page.says("names another proposal than the open one")
    page.page.screenshot(desk.shots / "review-refused.png")
    ledger = ledger_of(load(desk.file))
    opened = ledger.open_proposal()
    assert opened is not None
    assert (opened.record.hash, opened.review) == (proposal, None)
    assert desk.states(2).count("proposed") == 1

    settings(desk.file.parent, desk.mlflow, expires_hours=15 * SECONDS)  # of proposals from now on
    page.set_tag("tamis.review", f"reject:{proposal[:12]}")
    desk.served.until(lambda: ended(desk.file, 2), "the rejected cycle to end")
    assert "rejected" in desk.states(2)
    assert "applied" not in desk.states(2)
    assert desk.removed() == before
    assert desk.champion() >= champion


def _expired(desk: Desk) -> None:
    """The third cycle: nobody decides."""
    before = desk.removed()
    desk.served.until(lambda: ended(desk.file, 3), "the third cycle to end")
    assert "expired" in desk.states(3)
    assert not {"approved", "applied"} & set(desk.states(3))
    assert desk.removed() == before
    page = desk.browser.open(f"{address(desk.served.prefect)}/runs", height=1000)
    shown = "document.body.innerText.includes('AwaitingReview')"
    desk.served.until(lambda: page.evaluate(shown), "the runs on Prefect's page")
    page.screenshot(desk.shots / "service.png")
