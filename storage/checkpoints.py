"""Checkpoints that are whole, hashed and never overwritten.

    <cycle>/checkpoints/<role>/step-000123/model.safetensors   the parameters, written once
                                          /MANIFEST.json       {"files": {name: {sha256, bytes}}, "metadata": {…}}
                              /.step-000123.tmp/               being written or removed; torn if that process is gone
                              /state/step-000123/…             of a training under way: what its ranks resume from

One process calls `begin`, all ranks write into the temporary folder, a barrier follows, one process calls `commit`,
which hashes and syncs every file and renames the folder. A folder named `step-…` with a MANIFEST.json is therefore
complete; everything else is torn and `sweep` removes it. Nothing is ever unpickled here.

A state is a checkpoint without `model.safetensors`: files that the ranks alone can read. Only the newest is kept.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from storage.errors import CheckpointDamaged, CheckpointExists, StorageError, WriteFailed
from storage.files import (
    JSON,
    TEMPORARY,
    atomic_write_json,
    read_json,
    sha256_file,
    sha256_json,
    sync_file,
    sync_folder,
)

TENSORS = "model.safetensors"
MANIFEST = "MANIFEST.json"
STEP = re.compile(r"step-\d{6,}")


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint is of: the role, seed and step of its training, the digest of the model's definition."""

    role: str
    seed: int
    step: int
    model_digest: str
    world_size: int
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint; `digest` is the sha256 of its canonical MANIFEST.json."""

    path: Path
    digest: str
    metadata: Metadata

    @property
    def tensors(self) -> Path:
        """The safetensors file with the parameters."""
        return self.path / TENSORS


def temporary(role_dir: Path, step: int) -> Path:
    """The folder that every rank writes into before the commit."""
    return role_dir / f".step-{step:06d}{TEMPORARY}"


def begin(role_dir: Path, step: int) -> Path:
    """Create the empty temporary folder of a step; for one process only, before a barrier.

    Raises:
        CheckpointExists: this step is committed already.
        WriteFailed: the folder cannot be made.
    """
    final = role_dir / f"step-{step:06d}"
    if final.exists():
        raise CheckpointExists(f"{final} is there already; a checkpoint is never overwritten: continue from it")
    folder = temporary(role_dir, step)
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise WriteFailed(f"cannot write {folder}: {error.strerror}; free space or fix permissions") from error
    return folder


def write_tensors(folder: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write the parameters into a temporary folder.

    Args:
        folder: What `begin` returned.
        tensors: Arrays by parameter name.

    Raises:
        WriteFailed: the system refused the write.
    """
    # safetensors writes the buffer as it lies in memory: a transposed view would come back scrambled
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        save_file(arrays, folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise WriteFailed(f"cannot write {folder / TENSORS}: {error}; free space or fix permissions") from error


def commit(folder: Path, metadata: Metadata, needed: str = TENSORS) -> Checkpoint:
    """Hash and sync everything in a temporary folder, write its MANIFEST.json and rename it to its final name.

    Args:
        folder: What `begin` returned, written into.
        metadata: What it is of.
        needed: A file that it must hold.

    Raises:
        StorageError: it does not.
        WriteFailed: the system refused a write; the temporary folder stays for `sweep`.
    """
    if not (folder / needed).is_file():
        raise StorageError(f"{folder} has no {needed}; write it before commit")
    final = folder.parent / folder.name.removeprefix(".").removesuffix(TEMPORARY)
    try:
        files = {name: _describe(folder / name) for name in _names(folder)}
        for name in files:
            sync_file(folder / name)
        manifest: dict[str, JSON] = {"files": files, "metadata": asdict(metadata)}
        atomic_write_json(folder / MANIFEST, manifest)
        for inner in [path for path in folder.rglob("*") if path.is_dir()]:
            sync_folder(inner)
        os.rename(folder, final)
        sync_folder(final.parent)
    except OSError as error:
        raise WriteFailed(f"cannot commit {final}: {error.strerror}; free space or fix permissions") from error
    return Checkpoint(final, sha256_json(manifest), metadata)


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files if path != folder / MANIFEST)


def _describe(path: Path) -> dict[str, JSON]:
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def verify(path: Path) -> Checkpoint:
    """Read a committed checkpoint and check every byte against its MANIFEST.json.

    Raises:
        CheckpointDamaged: a file is missing, was added or has changed; says which and what to do.
    """
    remedy = "delete this folder and run again: the stage that wrote it is repeated"
    if not (path / MANIFEST).is_file():
        raise CheckpointDamaged(f"checkpoint {path} has no {MANIFEST}; {remedy}")
    manifest = read_json(path / MANIFEST)
    listed, found = manifest["files"], _names(path)
    if sorted(listed) != found:
        odd = sorted(set(listed) ^ set(found))
        raise CheckpointDamaged(f"checkpoint {path} is damaged: {', '.join(odd)} missing or added; {remedy}")
    for name in found:
        if _describe(path / name) != listed[name]:
            raise CheckpointDamaged(f"checkpoint {path} is damaged: {name} has changed since it was written; {remedy}")
    return Checkpoint(path, sha256_json(manifest), Metadata(**manifest["metadata"]))


def latest(role_dir: Path) -> Checkpoint | None:
    """The committed checkpoint with the highest step, verified; None when there is none.

    Raises:
        CheckpointDamaged: the newest one is damaged (an older one is never used in its place).
    """
    steps = sorted(_committed(role_dir), key=step_of)
    return verify(steps[-1]) if steps else None


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was saved after."""
    return int(checkpoint.name.removeprefix("step-"))


def _committed(role_dir: Path) -> list[Path]:
    found = role_dir.iterdir() if role_dir.is_dir() else ()
    return [path for path in found if STEP.fullmatch(path.name) and (path / MANIFEST).is_file()]


def sweep(role_dir: Path) -> tuple[Path, ...]:
    """Remove torn checkpoints (temporary, or without MANIFEST.json); for one process, before ranks start.

    Returns:
        The folders that were removed.
    """
    if not role_dir.is_dir():
        return ()
    whole = set(_committed(role_dir))
    torn = sorted(path for path in role_dir.glob("*step-*") if path.is_dir() and path not in whole)
    for path in torn:
        shutil.rmtree(path)
    return tuple(torn)


def remove(checkpoint: Path) -> None:
    """Remove a committed checkpoint; killed in the middle, this leaves a torn one, never one that seems whole."""
    torn = temporary(checkpoint.parent, step_of(checkpoint))
    os.rename(checkpoint, torn)
    shutil.rmtree(torn)


def keep(role_dir: Path, newest: int) -> None:
    """Remove all committed checkpoints but so many of the highest steps; for one process."""
    steps = sorted(_committed(role_dir), key=step_of)
    for older in steps[: len(steps) - newest]:
        remove(older)


def discard(role_dir: Path) -> None:
    """Remove a role's folder, if it is there, with all its checkpoints; for one process."""
    if role_dir.is_dir():
        keep(role_dir, newest=0)
        sweep(role_dir)
        role_dir.rmdir()


def read_tensors(checkpoint: Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The parameters of a committed checkpoint, by name in order; of chosen ones, the file gives up their bytes alone.

    Args:
        checkpoint: Its folder.
        names: Those to read; default: all.

    Raises:
        StorageError: the checkpoint has no parameter of such a name.
    """
    with (checkpoint / TENSORS).open(
        "rb"
    ) as file:  # safetensors' own reader maps the file, which counts as memory, too
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        known = sorted(header.keys() - {"__metadata__"})
        if unknown := sorted(set(names or ()) - set(known)):
            raise StorageError(f"{checkpoint} has no {unknown[0]}; it has {', '.join(known[:20])}")
        return {name: _read(file, start, header[name]) for name in known if names is None or name in names}


def _read(file: BufferedReader, start: int, entry: Mapping[str, Any]) -> NDArray[Any]:
    kind = entry["dtype"]  # F32, I64, BOOL, …
    dtype = np.dtype("?") if kind == "BOOL" else np.dtype(f"<{kind[0].lower()}{int(kind[1:]) // 8}")
    file.seek(start + entry["data_offsets"][0])
    return np.fromfile(file, dtype, math.prod(entry["shape"])).reshape(entry["shape"])
