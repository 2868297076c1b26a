import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from storage.parts import Parts

ARRAYS = {
    "full": np.arange(6.0).reshape(2, 3),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "number": np.array(7),
    "few": np.zeros((0, 4), np.float32),
    "yes": np.array([True, False]),
}


def test_a_part_comes_back_bit_by_bit_with_its_types_and_shapes(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "a" * 64)
    parts.write("of/chunk", ARRAYS, of="checkpoint")
    found = parts.read("of/chunk", of="checkpoint")
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    parts.write("empty", {})
    assert parts.read("empty") == {}


def test_what_is_missing_torn_altered_or_of_something_else_is_not_believed(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "a" * 64)
    parts.write("chunk", ARRAYS, of="one")
    [file] = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    assert parts.read("other", of="one") is None
    assert parts.read("chunk", of="two") is None
    assert Parts(tmp_path, "b" * 64).read("chunk", of="one") is None
    for damaged in (b"", whole[:5], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole.replace(b"full", b"fell")):
        file.write_bytes(damaged)
        assert parts.read("chunk", of="one") is None
    file.write_bytes(whole)
    assert parts.read("chunk", of="one") is not None


def test_a_sweep_removes_what_is_of_other_inputs_and_what_was_never_finished(tmp_path: Path) -> None:
    now, before = Parts(tmp_path, "a" * 64), Parts(tmp_path, "b" * 64)
    now.sweep()
    for parts in (now, before):
        parts.write("of/chunk", ARRAYS)
    [file] = [path for path in tmp_path.rglob("*.safetensors") if path.parts[-3].startswith("a")]
    torn = file.with_name(f".{file.name}.1.tmp")
    torn.write_bytes(b"torn")
    now.sweep()
    assert not torn.exists()
    assert now.read("of/chunk") is not None
    assert before.read("of/chunk") is None
    now.clear()
    assert not tmp_path.exists()


def test_what_another_stage_reads_stays_when_the_rest_is_cleared(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "unfinished", "a" * 64)
    for name in ("chunk", "curvature, step-1/blocks", "curvature, step-2/blocks", "directions/step-1"):
        parts.write(name, {"x": np.zeros(2)})
    parts.clear("curvature, step-2", "directions")
    assert parts.read("curvature, step-2/blocks") is not None
    assert parts.read("directions/step-1") is not None
    assert parts.read("curvature, step-1/blocks") is None
    assert parts.read("chunk") is None
    parts.clear()
    assert not (tmp_path / "unfinished").exists()


WRITES = """
import sys
from pathlib import Path
import numpy as np
from storage.errors import WriteFailed
from storage.parts import Parts
try:
    Parts(Path(sys.argv[1]), "a" * 64).write("chunk", {"x": np.zeros(2**12)})
except WriteFailed as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, 2**10)),
    )
    assert "free space" in done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
