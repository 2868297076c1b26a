"""Files that are either whole or not there, and hashes that do not depend on the machine.

A file is written under a temporary name in its own folder (a rename is atomic only inside one file system), synced,
renamed over the target, and the folder is synced so that the name survives a power loss.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from storage.errors import StorageError, WriteFailed

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

TEMPORARY = ".tmp"


def canonical_json(value: JSON) -> str:
    """One text per value: sorted keys, no spaces, shortest round-trip floats, -0.0 written as 0.0.

    Raises:
        StorageError: the value holds NaN, an infinity or something that JSON does not know.
    """
    try:
        return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"cannot be written as canonical JSON: {error}; give finite numbers and plain types"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return 0.0 if isinstance(value, float) and value == 0.0 else value


def sha256_json(value: JSON) -> str:
    """The sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 (64 hex digits) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_parts(parts: Iterable[bytes]) -> str:
    """The sha256 of several byte strings, each with its length before it, so that no two lists share a hash."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files under a folder; 0 if there is nothing."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def sync_file(path: Path) -> None:
    """Force the content of a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force the names in a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; on a normal exit it is synced and renamed to `path`.

    Raises:
        WriteFailed: the system refused a write, e.g. because the disk is full; nothing half written is left.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}{TEMPORARY}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        why = error.strerror or str(error)
        raise WriteFailed(f"cannot write {path}: {why}; free space or fix permissions, then run again") from error
    finally:
        if os.access(temporary, os.F_OK):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on a normal exit its files are synced and it is renamed to `path`.

    Raises:
        StorageError: `path` exists.
        WriteFailed: the system refused a write; nothing half written is left.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}{TEMPORARY}"
    if path.exists():
        raise StorageError(f"{path} exists; give a folder that does not")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            sync_file(file)
        sync_folder(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        why = error.strerror or str(error)
        raise WriteFailed(f"cannot write {path}: {why}; free space or fix permissions, then run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing (see `atomic_path`)."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: JSON) -> None:
    """Write indented JSON with sorted keys (see `atomic_path`); its hash is that of `canonical_json`."""
    atomic_write_text(path, json.dumps(json.loads(canonical_json(value)), sort_keys=True, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StorageError: the file is missing or not a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path} holds a {type(value).__name__}; a JSON object is expected")
    return value
