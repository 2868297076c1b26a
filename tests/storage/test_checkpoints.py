"""Checkpoints are whole, hashed, never overwritten, and read by name."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from storage import checkpoints
from storage.checkpoints import Metadata
from storage.errors import CheckpointDamaged, CheckpointExists, StorageError


def commit(role: Path, step: int, value: float = 1.0) -> checkpoints.Checkpoint:
    folder = checkpoints.begin(role, step)
    checkpoints.write_tensors(folder, {"w": np.full((2, 3), value, np.float32), "b": np.arange(3.0)})
    (folder / "zero").mkdir()
    (folder / "zero" / "rank0.pt").write_bytes(b"optimizer")
    return checkpoints.commit(folder, Metadata("baseline", 0, step, "model", 2, {"loss": 0.5}))


def test_a_commit_reads_back_with_its_digest_and_the_files_of_the_ranks(tmp_path: Path) -> None:
    made = commit(tmp_path / "baseline", 12)
    assert made.path.name == "step-000012"
    assert checkpoints.verify(made.path) == made == checkpoints.latest(tmp_path / "baseline")
    assert made.digest != commit(tmp_path / "other", 12, 2.0).digest
    assert made.digest == commit(tmp_path / "same", 12).digest


def test_tensors_read_back_by_name_in_order(tmp_path: Path) -> None:
    got = checkpoints.read_tensors(commit(tmp_path, 1).path)
    assert list(got) == ["b", "w"]
    np.testing.assert_array_equal(got["b"], np.arange(3.0))


def test_chosen_tensors_are_read_alone_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    path = commit(tmp_path, 1).path
    assert list(checkpoints.read_tensors(path, ["w"])) == ["w"]
    assert checkpoints.read_tensors(path, []) == {}
    with pytest.raises(StorageError, match="has no x; it has b, w"):
        checkpoints.read_tensors(path, ["w", "x"])


def test_chosen_tensors_take_no_more_memory_than_their_bytes_and_50_megabytes(tmp_path: Path) -> None:
    folder, megabyte = checkpoints.begin(tmp_path, 1), 2**20
    checkpoints.write_tensors(folder, {f"w{i}": np.full(40 * megabyte // 4, i, np.float32) for i in range(6)})
    path = checkpoints.commit(folder, Metadata("r", 0, 1, "m", 1)).path
    code = (
        "import re, sys; from pathlib import Path; from storage import checkpoints as c\n"
        "def peak(): return 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak(); c.read_tensors(Path(sys.argv[1]), sys.argv[2:] or None); print(peak() - before)"
    )

    def grown(*names: str) -> int:
        command = [sys.executable, "-c", code, str(path), *names]
        return int(subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, check=True).stdout)

    assert grown("w3", "w5") <= (80 + 50) * megabyte
    assert grown() >= 200 * megabyte


def test_a_transposed_view_a_scalar_and_every_type_are_stored_as_what_they_mean(tmp_path: Path) -> None:
    folder, transposed = checkpoints.begin(tmp_path, 1), np.arange(6.0).reshape(2, 3).T
    kinds = {name: np.arange(3).astype(name) for name in ("float16", "int64", "uint8", "bool")} | {
        "none": np.empty((0, 2))
    }
    checkpoints.write_tensors(folder, {"t": transposed, "s": np.array(3.0)} | kinds)
    made = checkpoints.commit(folder, Metadata("r", 0, 1, "m", 1))
    got = checkpoints.read_tensors(made.path)
    np.testing.assert_array_equal(got["t"], transposed)
    for name, array in kinds.items():
        np.testing.assert_array_equal(got[name], array, strict=True)
    assert got["s"].shape == ()
    assert got["s"] == 3.0


@pytest.mark.parametrize("name", ["model.safetensors", "zero/rank0.pt"])
def test_a_changed_byte_anywhere_is_detected_and_the_remedy_named(tmp_path: Path, name: str) -> None:
    made = commit(tmp_path, 1)
    data = bytearray((made.path / name).read_bytes())
    data[-1] ^= 1
    (made.path / name).write_bytes(data)
    with pytest.raises(CheckpointDamaged, match=rf"{name} has changed since it was written; delete this folder"):
        checkpoints.latest(tmp_path)


def test_a_missing_and_an_added_file_are_detected(tmp_path: Path) -> None:
    made = commit(tmp_path, 1)
    (made.path / "extra").write_bytes(b"")
    with pytest.raises(CheckpointDamaged, match="extra missing or added"):
        checkpoints.verify(made.path)
    (made.path / "extra").unlink()
    (made.path / "zero" / "rank0.pt").unlink()
    with pytest.raises(CheckpointDamaged, match=r"rank0\.pt missing or added"):
        checkpoints.verify(made.path)


def test_a_damaged_newest_checkpoint_is_never_replaced_by_an_older_one_in_silence(tmp_path: Path) -> None:
    commit(tmp_path, 1)
    (commit(tmp_path, 1_000_000).path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointDamaged, match="step-1000000"):
        checkpoints.latest(tmp_path)


def test_a_committed_step_is_never_overwritten(tmp_path: Path) -> None:
    commit(tmp_path, 1)
    with pytest.raises(CheckpointExists, match="never overwritten"):
        checkpoints.begin(tmp_path, 1)


def test_torn_folders_are_not_checkpoints_and_sweep_removes_only_them(tmp_path: Path) -> None:
    made = commit(tmp_path, 1)
    torn = checkpoints.begin(tmp_path, 2)
    (torn / "model.safetensors").write_bytes(b"half")
    headless = tmp_path / "step-000003"
    headless.mkdir()
    assert checkpoints.latest(tmp_path) == made
    assert checkpoints.sweep(tmp_path) == (torn, headless)
    assert list(tmp_path.iterdir()) == [made.path]
    assert checkpoints.sweep(tmp_path / "absent") == ()
    assert checkpoints.latest(tmp_path / "absent") is None


def test_only_the_newest_are_kept_and_one_being_removed_does_not_seem_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [commit(tmp_path, step) for step in (1, 2, 10)]
    checkpoints.keep(tmp_path, newest=2)
    assert sorted(tmp_path.iterdir()) == [made[1].path, made[2].path]
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda path: None)
        checkpoints.keep(tmp_path, newest=1)
    assert checkpoints.sweep(tmp_path) == (checkpoints.temporary(tmp_path, 2),)
    checkpoints.discard(made[0].path.parent)
    checkpoints.discard(made[0].path.parent)
    assert not tmp_path.exists()


def test_a_commit_without_parameters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no model\.safetensors"):
        checkpoints.commit(checkpoints.begin(tmp_path, 1), Metadata("r", 0, 1, "m", 1))


def test_a_writer_killed_at_any_moment_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from storage import checkpoints as c\n"
        "role = Path(sys.argv[1]); step = int(sys.argv[2]); c.sweep(role)\n"
        "while True:\n"
        "    f = c.begin(role, step); c.write_tensors(f, {'w': np.full(200_000, float(step))})\n"
        "    c.commit(f, c.Metadata('r', 0, step, 'm', 1)); print(step, flush=True); step += 1\n"
    )
    acknowledged = 0
    for delay_lines in (1, 3, 5):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "role"), str(acknowledged + 1)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        for _ in range(delay_lines):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0].split()
        found = checkpoints.latest(tmp_path / "role")
        assert found is not None
        step = found.metadata.step
        assert step >= acknowledged + delay_lines + len(rest), "an acknowledged checkpoint is never lost"
        assert checkpoints.read_tensors(found.path)["w"][0] == step
        acknowledged = step
