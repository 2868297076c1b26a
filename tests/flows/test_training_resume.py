"""A training that was killed goes on as if it had not been: the same bytes in the end."""

import itertools
import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.config import load
from flows.errors import BadInput, StageFailed
from flows.plans import STATE, Job, TrainPlan, write_plan
from flows.ranks import randomness
from flows.ranks.engine import Engine
from flows.sections.training import TrainingConfig
from storage import checkpoints
from storage.errors import CheckpointDamaged, WriteFailed
from storage.files import sha256_file
from storage.trajectory_store import TRAJECTORY
from tests.faults.trap import TRAPS, trapped
from tests.flows.helpers import Launch, launch, run_here, write_toml
from tests.flows.test_ranks import train_digest

NOISY = f"{Path(__file__).with_name('noisy.py')}:Noisy"
STEPS = 12
RECIPE = {
    "accumulation": 2,
    "clipping": 0.5,
    "schedule": "cosine",
    "warmup": 0.2,
    "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},  # partitions the smallest, too
}
OFTEN = {(0, "bf16"), (1, "fp32"), (2, "bf16"), (3, "fp32"), (1, "fp32", 1), (2, "bf16", 1), (3, "fp32", 4)}


def all_but_often(*ways: Sequence[Any]) -> list[Any]:
    """Every combination; those that are not among OFTEN only in `make matrix`."""
    return [pytest.param(*case, marks=[] if case in OFTEN else pytest.mark.matrix) for case in itertools.product(*ways)]


CASES = all_but_often(range(4), ("fp32", "bf16"))  # on one rank, in this process: all eight
MOVES = all_but_often(range(4), ("fp32", "bf16"), (1, 4))
KILLED = 8  # after the states of steps 3 and 6


class Killed(Exception):
    """What a rank in this process dies of."""


def plan(folder: Path, *models: str, entry: str = NOISY, options: Any = None, **training: Any) -> TrainPlan:
    config = load(write_toml(folder, entry, options, training={"batch_size": 32} | training))
    jobs = [
        Job(role="baseline", seed=3, steps=STEPS, planned=STEPS, folder=folder / name, save_at=(STEPS // 2, STEPS))
        for name in models
    ]
    return TrainPlan(config=config, logs=folder / "logs", train_digest=train_digest(config), jobs=tuple(jobs))


def here(plan: TrainPlan) -> None:
    run_here(Launch("train", write_plan(plan, plan.logs / "train.json"), 1, plan.logs, 60.0), lambda _: None)


def killed_here(plan: TrainPlan, patch: pytest.MonkeyPatch) -> None:
    set_rate, steps = Engine.set_rate, iter(range(1, KILLED))

    def until(self: Engine, rate: float) -> None:
        if next(steps, None) is None:
            raise Killed
        set_rate(self, rate)

    with patch.context() as patched:
        patched.setattr(Engine, "set_rate", until)
        with pytest.raises(Killed):
            here(plan)


def left(folder: Path) -> Mapping[str, str]:
    """What stands in a trained model's folder, by digest; what a clock says is left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json")
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_training_that_was_killed_leaves_the_bytes_of_one_that_was_not(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str
) -> None:
    recipe = RECIPE | {"zero_stage": stage, "precision": precision}
    killed_here(plan(tmp_path, "killed", **recipe), monkeypatch)
    assert [path.name for path in (tmp_path / "killed" / STATE).iterdir()] == ["step-000006"]
    here(plan(tmp_path, "killed", "whole", **recipe))
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    assert {"step-000006", "step-000012", TRAJECTORY} < {path.name for path in (tmp_path / "whole").iterdir()}
    assert pq.read_table(tmp_path / "killed" / TRAJECTORY)["step"].to_pylist() == list(range(1, STEPS + 1))
    assert not (tmp_path / "killed" / STATE).exists()


def one_whole_one_killed(folder: Path, patch: pytest.MonkeyPatch, **recipe: Any) -> None:
    """Two models of one recipe, on two ranks, of which one is killed in the middle of the second."""
    with patch.context() as patched:
        patched.setenv(TRAPS, json.dumps([f"1 flows.ranks.engine:Engine.set_rate before {STEPS + KILLED} kill_self"]))
        patched.setattr("flows.agents._launcher", trapped)
        with pytest.raises(StageFailed, match="rank 1"):
            launch("train", plan(folder, "whole", "killed", ranks=2, **recipe), 2)
    assert [path.name for path in (folder / "killed" / STATE).iterdir()] == ["step-000006"]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_a_rank_killed_in_the_middle_of_a_training_changes_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str
) -> None:
    recipe = RECIPE | {"zero_stage": stage, "precision": precision}
    one_whole_one_killed(tmp_path, monkeypatch, **recipe)
    launch("train", plan(tmp_path, "killed", ranks=2, **recipe), 2)
    assert left(tmp_path / "killed") == left(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision", "ranks"), MOVES)
def test_a_training_begun_on_two_ranks_ends_on_another_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str, ranks: int
) -> None:
    recipe: dict[str, Any] = RECIPE | {"entry": "tiny", "accumulation": 1, "zero_stage": stage, "precision": precision}
    one_whole_one_killed(tmp_path, monkeypatch, **recipe)
    launch("train", plan(tmp_path, "killed", ranks=2, **recipe), ranks)
    moved, whole = (checkpoints.verify(tmp_path / name / f"step-{STEPS:06d}") for name in ("killed", "whole"))
    assert (moved.metadata.world_size, whole.metadata.world_size) == (ranks, 2)
    tolerance = {"fp32": 1e-5, "bf16": 1e-2}[precision]
    one, other = (vector(checkpoints.read_tensors(found.path)) for found in (moved, whole))
    assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)
    one, other = (pq.read_table(tmp_path / name / "holdout.parquet")["loss"].to_numpy() for name in ("killed", "whole"))
    assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


def vector(tensors: Mapping[str, Any]) -> Any:
    return np.concatenate([value.ravel() for value in tensors.values()])


def test_another_stage_cannot_take_up_a_training_and_other_ways_to_run_it_can(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_here(plan(tmp_path, "killed", entry="tiny", zero_stage=2), monkeypatch)
    with pytest.raises(BadInput, match=r"zero_stage = 3, but .*step-000006 was saved at stage 2.*zero_stage = 2 again"):
        here(plan(tmp_path, "killed", entry="tiny", zero_stage=3))
    here(
        plan(
            tmp_path,
            "killed",
            entry="tiny",
            zero_stage=2,
            offload="cpu",
            accumulation=2,
            activation_checkpointing=["*"],
        )
    )
    here(plan(tmp_path, "whole", entry="tiny", zero_stage=2))
    one, other = (vector(checkpoints.read_tensors(tmp_path / n / f"step-{STEPS:06d}")) for n in ("killed", "whole"))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_disk_that_is_full_in_the_middle_of_a_state_is_one_line_and_the_state_before_stands(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    begin = checkpoints.begin

    def fill(role_dir: Path, step: int) -> Path:
        if (role_dir.name, step) == (STATE, 6):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, most))  # from now on no file grows beyond
        return begin(role_dir, step)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "begin", fill)
        try:
            with pytest.raises(WriteFailed, match=r"state/\.step-000006\.tmp: .*; free space[^\n]*$"):
                here(plan(tmp_path, "full"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert (tmp_path / "full" / STATE / "step-000003").exists()
    here(plan(tmp_path, "full", "whole"))
    assert left(tmp_path / "full") == left(tmp_path / "whole")


def test_what_a_model_is_known_by_is_its_recipe_and_not_how_it_is_run() -> None:
    recipe = TrainingConfig().recipe()
    runs = {"ranks": 4, "accumulation": 2, "activation_checkpointing": ("*",), "offload": "cpu", "zero_stage": 3}
    assert TrainingConfig(**runs, resume_every=0.5).recipe() == recipe
    for change in ({"precision": "bf16"}, {"clipping": 1.0}, {"deepspeed": {"seq_parallel": 1}}, {"batch_size": 32}):
        assert TrainingConfig(**change).recipe() != recipe


@pytest.mark.parametrize("forgotten", ["torch", "numpy", "optimizer"])
def test_a_resume_that_forgets_where_the_draws_or_the_optimizer_stood_would_not_be_the_same(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    killed_here(plan(tmp_path, "killed"), monkeypatch)
    if forgotten == "optimizer":
        monkeypatch.setattr(Engine, "load_state", lambda *_: None)
    else:
        draws, restore = randomness.draws, randomness.restore
        monkeypatch.setattr(randomness, "restore", lambda kept: restore(kept | {forgotten: draws()[forgotten]}))
    here(plan(tmp_path, "killed", "whole"))
    assert left(tmp_path / "killed") != left(tmp_path / "whole")


def test_a_torn_state_is_swept_and_a_damaged_one_is_never_loaded(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_here(plan(tmp_path, "killed"), monkeypatch)
    torn = tmp_path / "killed" / STATE / "step-000009"
    (torn / "zero").mkdir(parents=True)
    whole = torn.with_name("step-000006")
    file = next((whole / "zero").glob("*optim*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointDamaged, match=rf"{file.name} has changed since it was written"):
        here(plan(tmp_path, "killed"))
    assert not torn.exists()
    checkpoints.remove(whole)
    here(plan(tmp_path, "killed", "whole"))
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
