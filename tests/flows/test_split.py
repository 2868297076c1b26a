"""Curvature split by blocks: less of it on each rank, and the same scores."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flows.errors import BadInput
from flows.ranks.rank import Alone
from flows.ranks.split import added_up, owned
from influence import Own, PairScores, Share, select
from storage import score_store
from storage.files import read_json
from tests.flows.helpers import launch
from tests.flows.test_ranks import here, score_plan, train_plan


def blocks_of(*widths: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(*(torch.nn.Linear(width, 4) for width in widths)).eval()


def test_every_block_is_one_rank_s_and_no_rank_holds_much_more_than_another() -> None:
    blocks = select(blocks_of(64, 8, 40, 30, 8))
    shares = [owned(blocks, Share(rank, 2)) for rank in range(2)]
    assert sorted(block.name for share in shares for block in share) == [block.name for block in blocks]
    sizes = [sum(block.parameters for block in share) for share in shares]
    assert max(sizes) - min(sizes) <= max(block.parameters for block in blocks) / 3
    with pytest.raises(BadInput, match="ranks = 6, and 5 blocks"):
        owned(blocks, Share(0, 6))


def test_scores_on_the_blocks_of_all_ranks_are_their_sum_and_what_was_given_stays_as_it_is() -> None:
    class Twice(Alone):
        def sum(self, tensor: torch.Tensor) -> None:
            tensor *= 2

    influence = torch.randn(3, 2, dtype=torch.float64)
    scores = PairScores(influence, influence + 1, Own(influence[:, 0], influence[:, 1]))
    before = influence.clone()
    whole = added_up(scores, Twice(lambda *_: None))
    assert influence.equal(before)
    assert whole.influence.equal(2 * before)
    assert whole.classification.equal(2 * (before + 1))
    assert whole.own.squared_step is not None
    assert whole.own.squared_step.equal(2 * before[:, 1])


@pytest.mark.slow
def test_what_each_rank_kept_of_its_own_blocks_is_found_by_one_rank_that_takes_all(
    one_rank: None, tmp_path: Path
) -> None:
    here("train", train_plan(tmp_path))
    plan = score_plan(tmp_path / "scoring", tmp_path, ranks=2, placement="split", probe=10)
    launch("score", plan, 2)
    kept = sorted(path.stem for path in plan.folder.glob("unfinished/*/curvature*/*"))
    assert kept == sorted(["blocks-0", "blocks-2", "head-2"] * 2)  # of two checkpoints
    score_store.finish(plan.folder, 5)
    split = score_store.read(plan.folder)
    for path in (*plan.folder.glob("*.parquet"), *plan.folder.glob("unfinished/*/chunk*")):
        path.unlink()
    here("score", score_plan(tmp_path / "scoring", tmp_path, ranks=1, probe=10))
    assert read_json(plan.logs / "score-rank0.json")["found"] == 6 + 6  # and 6 fold models
    score_store.finish(plan.folder, 5)
    whole = score_store.read(plan.folder)
    for name in ("influence", "self_influence", "signal_grand"):
        one, other = whole[name].to_numpy(), split[name].to_numpy()
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)
