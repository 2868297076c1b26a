"""What agrees where points are proposed: checkpoints, and under compression the masks of each."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from flows.config import load
from flows.ranks.attribution import Attribution, Setting
from flows.ranks.chunks import score_chunks
from flows.ranks.points import Points
from flows.ranks.rank import Alone
from influence import ChunkGrid
from tests.flows.blobs import Blobs
from tests.flows.helpers import write_toml

ALONE = Alone(lambda *_: None)


@pytest.mark.parametrize("masked", [False, True])
def test_the_same_model_at_every_checkpoint_agrees_with_itself_but_for_the_masks(masked: bool, tmp_path: Path) -> None:
    small = {"compression": {"kind": "mask", "ratio": 4.0}, "exact_head": False} if masked else {}
    config = load(write_toml(tmp_path, scoring=small))
    blobs = Blobs()
    points, queries = Points("train", blobs.points(), blobs), Points("query", blobs.queries(), blobs)
    setting = Setting(config=config, energies={}, horizon=10.0, checkpoints=4, folder=tmp_path)
    grid = ChunkGrid(len(points), config.scoring.chunk)
    with ExitStack() as opened:
        same = list[Attribution]()
        for number in range(4):
            torch.manual_seed(0)
            one = Attribution(blobs.model(), blobs, setting, points, ALONE, number)
            same.append(opened.enter_context(one))
            one.fit("fitting")
            one.prepare(queries)
        scored = score_chunks(same, queries, grid, ALONE)
    agreement = torch.cat([columns.agreement for columns in scored.values()])
    assert bool((agreement < 1).any()) == masked
