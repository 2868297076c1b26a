"""What a cycle says of its blocks, in its summary, its report and MLflow."""

import shutil
from html import unescape
from pathlib import Path

from mlflow import MlflowClient

from flows.summary import Summary
from storage import score_store
from tests.flows.helpers import turn, write_toml


def run_of(summary: Summary, workspace: Path) -> dict[str, float]:
    """The metrics of the cycle's MLflow run."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    [experiment] = [one for one in client.search_experiments() if one.name == summary.dataset]
    [run] = client.search_runs([experiment.experiment_id], "tags.`tamis.cycle` = '1'")
    metrics: dict[str, float] = run.data.metrics
    return metrics


def test_a_cycle_says_how_much_of_the_model_was_scored_and_whether_it_can_be_trusted(here: Path) -> None:
    summary = turn(write_toml(here, scoring={"blocks": ["head"]}), dry_run=True)
    assert summary.blocks.startswith("head: 27 parameters, 52.9% of the model, ")
    assert summary.blocks.endswith("% of the gradient energy")
    assert "rank correlation of 50 x 10 pairs" in summary.probe
    report = unescape(summary.report.read_text())
    assert summary.blocks in report
    assert summary.probe in report
    scores = score_store.load(here / "ws" / "cycles" / "000001" / "scores")
    assert scores is not None
    made, metrics = scores.metadata.extra, run_of(summary, here / "ws")
    assert metrics["blocks_energy"] == made["selection"]["energy"]
    assert metrics["probe_blocks_spearman"] == made["probe"]["blocks"]["pairs"]
    assert metrics["probe_blocks_error"] == made["probe"]["blocks"]["error"]
    assert metrics["probe_estimator_spearman"] == made["probe"]["estimator"]["pairs"]
    trusted = made["probe"]["blocks"]["pairs"] >= 0.9
    assert summary.probe.startswith("trusted" if trusted else "WARNING, not trusted: select more blocks")


def test_the_probe_changes_no_proposal(here: Path) -> None:
    shutil.copytree(here / "ws", here / "plain")
    probed = turn(write_toml(here), dry_run=True)
    plain = turn(write_toml(here, workspace="plain", scoring={"probe": 0}), dry_run=True)
    assert probed.proposed > 0
    assert plain.proposed == probed.proposed
    assert (plain.probe, plain.blocks) == ("", probed.blocks)
    rows = [score_store.read(here / name / "cycles" / "000001" / "scores") for name in ("ws", "plain")]
    assert rows[0].equals(rows[1])
