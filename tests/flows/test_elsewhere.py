"""Models trained by a team's own command are checked, kept and judged like ours."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.errors import BadInput, StageFailed
from storage import checkpoints
from tests.flows.blobs import Blobs
from tests.flows.helpers import turn, write_toml

ROOT = Path(__file__).parents[2]
OWN = [sys.executable, "-m", "tests.flows.own_trainer"]


def command(*parts: str) -> dict[str, Any]:
    return {"training": {"command": list(parts)}}


def python(code: str) -> dict[str, Any]:
    """A command in Python, given the job."""
    return command(sys.executable, "-c", f"import json, sys; job = json.load(open(sys.argv[1])); {code}")


def baseline(here: Path) -> Path:
    (folder,) = (here / "ws" / "cycles" / "000001" / "checkpoints").glob("baseline-seed0-*")
    return folder


def test_a_models_checkpoints_are_those_that_the_command_left_and_it_is_judged_here(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file = write_toml(here, **command(*OWN))
    assert turn(file, dry_run=True).state == "proposed"
    folder, logs = baseline(here), here / "ws" / "cycles" / "000001"
    job = json.loads((logs / "plans" / "command-baseline-seed0.json").read_text())
    assert {key: job[key] for key in ("role", "seed", "epochs")} == {"role": "baseline", "seed": 0, "epochs": 25}
    assert job["save_at"] == [job["steps"] // 2, job["steps"]]
    found = [checkpoints.verify(folder / f"step-{step:06d}") for step in job["save_at"]]
    assert [one.metadata.role for one in found] == ["baseline", "baseline"]
    assert pq.read_table(folder / "holdout.parquet")["correct"].to_numpy().mean() > 0.8
    assert not (folder / "given").exists()


@pytest.mark.slow
def test_a_whole_cycle_with_a_command_trains_every_arm_by_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert turn(write_toml(here, **command(*OWN))).state == "promoted"
    left = (here / "ws" / "cycles" / "000001" / "logs").glob("command-*.log")
    arms = {f"{arm}-seed{seed}" for arm in ("baseline", "challenger", "control") for seed in (0, 1)}
    assert {path.stem.removeprefix("command-") for path in left} == arms


@pytest.mark.parametrize(
    ("code", "error", "match"),
    [
        (
            "sys.exit('no such data')",
            StageFailed,
            r"ended with code 1 for baseline-seed0: no such data; its log is .*log$",
        ),
        ("pass", BadInput, r"left no .*step-000050\.safetensors: it must leave one for each step of save_at"),
    ],
)
def test_a_command_that_fails_or_leaves_nothing_ends_the_stage_with_a_line(
    here: Path, code: str, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        turn(write_toml(here, **python(code)), dry_run=True)


def test_a_command_that_is_not_there_is_named(here: Path) -> None:
    with pytest.raises(StageFailed, match=r"code 1.*no-such-trainer: No such file"):
        turn(write_toml(here, **command("no-such-trainer")), dry_run=True)


@pytest.mark.parametrize(("shape", "match"), [((4, 2), "of another model"), ((8, 2), "hidden.weight is not finite")])
def test_another_model_or_one_that_diverged_is_refused_and_the_command_is_run_again(
    here: Path, shape: tuple[int, int], match: str
) -> None:
    given = here / "given"
    given.mkdir()
    state = Blobs().model().state_dict()
    save_file(state | {"hidden.weight": torch.full(shape, torch.inf)}, given / "bad.safetensors")
    save_file(state, given / "good.safetensors")
    copy = (
        "import shutil; [shutil.copy(FILE, job['folder'] + f'/step-{step:06d}.safetensors') for step in job['save_at']]"
    )
    file = write_toml(here, **python(copy.replace("FILE", repr(str(given / "bad.safetensors")))))
    with pytest.raises(BadInput, match=match):
        turn(file, dry_run=True)
    (given / "bad.safetensors").write_bytes((given / "good.safetensors").read_bytes())
    turn(file, dry_run=True)
    kept = load_file(sorted(baseline(here).glob("step-*"))[-1] / "model.safetensors")
    assert torch.equal(kept["hidden.weight"], state["hidden.weight"])


@pytest.mark.parametrize("session", [False, True], ids=["in its group", "in a session of its own, as torchrun's ranks"])
def test_a_command_and_what_it_started_do_not_outlive_the_flow(tmp_path: Path, session: bool) -> None:
    child = (
        f"import time; open({str(tmp_path / 'child')!r}, 'w').write(str(__import__('os').getpid())); time.sleep(600)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session={session})"
    warden = str(ROOT / "flows" / "warden.py")
    flow = psutil.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys; subprocess.run([sys.executable, '-P', sys.argv[1], str(os.getpid()), "
            "sys.executable, '-c', sys.argv[2]], start_new_session=True)",
            warden,
            code,
        ]
    )
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.05)
    grandchild = psutil.Process(int((tmp_path / "child").read_text()))
    below = [*flow.children(recursive=True), grandchild]
    flow.kill()
    flow.wait()
    assert psutil.wait_procs(below, timeout=60)[1] == []
