"""Files are whole or not there; hashes do not depend on the machine."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import StorageError, WriteFailed
from storage.files import (
    atomic_path,
    atomic_write_json,
    atomic_write_text,
    canonical_json,
    read_json,
    sha256_file,
    sha256_json,
    sha256_parts,
)


def test_canonical_json_does_not_depend_on_order_spaces_or_the_sign_of_zero() -> None:
    assert canonical_json({"b": (1, 2.5), "a": -0.0, "é": None}) == '{"a":0.0,"b":[1,2.5],"é":null}'
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    assert sha256_json([1]) != sha256_json(["1"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes"])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(StorageError, match="canonical JSON"):
        canonical_json({"a": value})  # type: ignore[dict-item]


def test_json_on_disk_has_the_hash_of_its_canonical_form(tmp_path: Path) -> None:
    value = {"b": [0.1, 1e-30], "a": {"x": "é"}}
    atomic_write_json(tmp_path / "deep" / "x.json", value)
    assert sha256_json(read_json(tmp_path / "deep" / "x.json")) == sha256_json(value)


def test_parts_with_the_same_concatenation_have_different_hashes() -> None:
    assert sha256_parts([b"ab", b"c"]) != sha256_parts([b"a", b"bc"])


def write_half(target: Path, error: Exception) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "x"
    atomic_write_text(target, "old")
    with pytest.raises(WriteFailed, match="No space left on device; free space"):
        write_half(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(KeyError):
        write_half(target, KeyError("a mistake of the caller"))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_real_write_that_the_system_refuses_leaves_nothing_half_written(tmp_path: Path) -> None:
    # a file size limit makes the kernel itself refuse in the middle of the file, as a full disk does
    code = (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path\n"
        "from storage.files import atomic_write_bytes\n"
        f"atomic_write_bytes(Path({str(tmp_path / 'big')!r}), bytes(1 << 20))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
    )
    assert "storage.errors.WriteFailed: cannot write" in run.stderr
    assert "File too large" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailed, match=r"cannot write .*file/x: .*; free space or fix permissions") as error:
        atomic_write_text(tmp_path / "file" / "x", "text")
    assert "\n" not in str(error.value)


def test_reading_something_else_than_an_object_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(json.dumps([1]))
    for path in (tmp_path / "x", tmp_path / "absent"):
        with pytest.raises(StorageError, match=r"x|absent"):
            read_json(path)


def test_file_hash_is_the_known_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
