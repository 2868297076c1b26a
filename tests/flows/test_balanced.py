"""What the policy `balanced` reads: scored chunk by chunk, where it is named, the same on any ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from flows.config import load
from influence.redundancy import SLACK
from storage import score_store
from storage.proposals import Proposal
from tests.flows.helpers import launch, turn, write_toml
from tests.flows.test_ranks import here as run_rank
from tests.flows.test_ranks import score_plan, train_plan

NAMED = {"policies": ["balanced"]}


def scores(folder: Path, trained: Path, ranks: int = 1, **settings: Any) -> pa.Table:
    plan = score_plan(folder, trained, ranks=ranks, probe=0, **settings)
    if ranks == 1:
        run_rank("score", plan)
    else:
        launch("score", plan, ranks)
    score_store.finish(plan.folder, 5)
    return score_store.read(plan.folder)


def test_every_chunk_is_balanced_in_itself_where_the_policy_is_named(one_rank: None, tmp_path: Path) -> None:
    run_rank("train", train_plan(tmp_path))
    plain, named = scores(tmp_path / "plain", tmp_path), scores(tmp_path / "named", tmp_path, pruning=NAMED)
    assert set(named.schema.names) - set(plain.schema.names) == {"balance"}
    assert named.drop_columns("balance").equals(plain)
    for chunk in range(5):
        rows = named.slice(40 * chunk, 40)
        there, label = rows["in_train"].to_numpy(), rows["label"].to_numpy()
        assert rows["balance"].is_valid().to_numpy().tolist() == there.tolist()
        share = rows["balance"].to_numpy()
        for most, at_least in ((0.2, 1), (0.6, 20)):  # of four points of a class the first goes at a share of 1/6
            out = there & (share <= most)
            assert at_least <= out.sum() <= most * there.sum()
            assert all(out[label == one].sum() <= SLACK * most * (there & (label == one)).sum() for one in set(label))


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["replicated", "split"])
def test_two_ranks_balance_as_one_does(one_rank: None, tmp_path: Path, placement: str) -> None:
    run_rank("train", train_plan(tmp_path))
    one = scores(tmp_path / "one", tmp_path, pruning=NAMED)
    two = scores(tmp_path / "two", tmp_path, ranks=2, placement=placement, pruning=NAMED)
    np.testing.assert_array_equal(one["balance"].to_numpy(), two["balance"].to_numpy())


@pytest.mark.slow
def test_an_open_cycle_in_which_it_is_named_is_scored_again_and_held_to_be_no_worse(here: Path) -> None:
    training = {"epochs": 4, "checkpoints": [1.0]}
    budgets = {"budget": 0.5, "cumulative_budget": 0.5, "class_budget": 1.0}

    def file(policy: str, mode: str) -> Path:
        pruning = {"policies": [policy], "balanced_share": 0.5, **budgets}
        return write_toml(here, training=training, scoring={"probe": 0}, pruning=pruning, review={"mode": mode})

    assert turn(file("redundant", "manual")).state == "awaiting_review"
    toml = file("balanced", "auto")
    summary = turn(toml)
    folder = here / "ws/cycles/000001"
    table = score_store.read(folder / "scores", ["balance"])
    ids = table.filter(pc.field("balance") <= 0.5)["point_id"].to_pylist()
    proposal = Proposal.read(folder)
    assert proposal.points == sorted(ids)
    assert len(ids) > 0.3 * len(table)
    assert set(proposal.rows["reason"].to_pylist()) == {"balanced"}
    assert "points whose effects cancel if they go together" in summary.report.read_text()
    limits = {check.name: check.limit for check in summary.checks}
    margin = load(toml).guardrail.redundant_tolerance
    assert limits["challenger - baseline"] == limits["challenger - control"] == margin
