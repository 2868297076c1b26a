"""What a killed scoring leaves, any number of ranks goes on from: nothing that is whole is computed again."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.launch import Launch
from flows.plans import ScorePlan, write_plan
from flows.ranks.attribution import Attribution
from flows.ranks.folds import OutOfFold
from storage import score_store
from tests.flows.helpers import launch, run_here
from tests.flows.test_ranks import score_plan, train_plan

CHUNKS = 5
WORK = {"chunks": (Attribution, "score_chunk"), "passes": (Attribution, "_pass"), "folds": (OutOfFold, "_train")}


class Broke(Exception):
    pass


class Work:
    """Counts what is computed, and breaks where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: Counter[str] = Counter()
        self.breaks: dict[str, int] = {}
        for kind, (owner, name) in WORK.items():
            monkeypatch.setattr(owner, name, self._counted(kind, getattr(owner, name)))

    def _counted(self, kind: str, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.done[kind] == self.breaks.get(kind):
                raise Broke(kind)
            self.done[kind] += 1
            return function(*args, **kwargs)

        return wrapped


@pytest.fixture(scope="module")
def trained(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    plan = train_plan(folder)
    run_here(Launch("train", write_plan(plan, folder / "train.json"), 1, plan.logs, 60.0), lambda _: None)
    return folder


def score(plan: ScorePlan) -> str:
    run_here(Launch("score", write_plan(plan, plan.logs / "score.json"), 1, plan.logs, 60.0), lambda _: None)
    return score_store.finish(plan.folder, CHUNKS).sha256


def test_scores_broken_off_anywhere_end_as_undisturbed_ones_and_nothing_finished_is_computed_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(score_plan(tmp_path / "whole", trained, probe=0))
    plan, work = score_plan(tmp_path / "broken", trained, probe=0), Work(monkeypatch)
    for kind, after in (("folds", 2), ("passes", 3), ("chunks", 5)):
        work.breaks = {kind: after}
        with pytest.raises(Broke):
            score(plan)
    work.breaks = {}
    assert score(plan) == whole
    # 2 checkpoints: 2 passes for each, the second's first pass made again; the chunk of which one was scored again
    assert work.done == {"folds": 6, "passes": 2 + 1 + 2, "chunks": 2 * CHUNKS + 1}


def test_an_altered_part_is_computed_again(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = score_plan(tmp_path, trained, probe=0)
    whole, work = score(plan), Work(monkeypatch)
    for name in ("fold-1-0000", "chunk-00002"):
        [part] = plan.folder.rglob(f"{name}.safetensors")
        part.write_bytes(part.read_bytes()[:-1] + b"\x55")
    next(plan.folder.rglob("blocks-2.safetensors")).unlink()
    score_store.discard(plan.folder)
    assert score(plan) == whole
    assert work.done == {"folds": 1, "passes": 2, "chunks": 2}


@pytest.mark.slow
def test_what_one_rank_began_three_end_with_the_same_scores(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(score_plan(tmp_path / "whole", trained, probe=0))
    plan, work = score_plan(tmp_path / "broken", trained, probe=0), Work(monkeypatch)
    work.breaks = {"chunks": 5}
    with pytest.raises(Broke):
        score(plan)
    before = {path: path.stat().st_mtime_ns for path in plan.folder.rglob("*.safetensors")}
    launch("score", plan, 3)
    score_store.finish(plan.folder, CHUNKS)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    one, three = (score_store.read(tmp_path / name / "scores") for name in ("whole", "broken"))
    for field in one.schema:
        if pa.types.is_floating(field.type):  # another order of float64 sums
            np.testing.assert_allclose(*(t[field.name].to_numpy(zero_copy_only=False) for t in (one, three)), rtol=1e-9)
