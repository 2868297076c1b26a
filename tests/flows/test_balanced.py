"""What the policy `balanced` reads: scored chunk by chunk, where it is named, the same on any ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from influence.redundancy import SLACK
from storage import score_store
from tests.flows.helpers import launch
from tests.flows.test_ranks import here, score_plan, train_plan

NAMED = {"policies": ["balanced"]}


def scores(folder: Path, trained: Path, ranks: int = 1, **settings: Any) -> pa.Table:
    plan = score_plan(folder, trained, ranks=ranks, probe=0, **settings)
    if ranks == 1:
        here("score", plan)
    else:
        launch("score", plan, ranks)
    score_store.finish(plan.folder, 5)
    return score_store.read(plan.folder)


def test_every_chunk_is_balanced_in_itself_where_the_policy_is_named(one_rank: None, tmp_path: Path) -> None:
    here("train", train_plan(tmp_path))
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
    here("train", train_plan(tmp_path))
    one = scores(tmp_path / "one", tmp_path, pruning=NAMED)
    two = scores(tmp_path / "two", tmp_path, ranks=2, placement=placement, pruning=NAMED)
    np.testing.assert_array_equal(one["balance"].to_numpy(), two["balance"].to_numpy())
