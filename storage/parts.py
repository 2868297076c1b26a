"""What is already known of an unfinished stage: arrays by name, each file whole, hashed, and of these inputs alone.

    <folder>/<inputs digest, 16 digits>/chunk-00012.safetensors     written at once; a temporary name until it is whole

A file carries the sha256 of its arrays. What is torn, altered or of other inputs is never believed: it is as if it were
not there, and is computed again. When the stage has its result, the folder goes.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from storage.errors import WriteFailed
from storage.files import TEMPORARY, atomic_path, sync_file

Arrays = Mapping[str, NDArray[Any]]


class Parts:
    """The parts of one stage.

    Args:
        folder: Of this stage alone.
        inputs_digest: Of everything that all parts depend on.
    """

    def __init__(self, folder: Path, inputs_digest: str) -> None:
        self._all, self._folder = folder, folder / inputs_digest[:16]

    def write(self, name: str, arrays: Arrays, of: str = "") -> None:
        """Write a part, whole or not at all.

        Args:
            name: Of the part; a slash makes a folder.
            arrays: Named.
            of: What else it depends on.

        Raises:
            WriteFailed: the system refused the write.
        """
        path = self._path(name)
        whole = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        with atomic_path(path) as draft:
            try:
                save_file(whole, draft, metadata={"sha256": _digest(whole, of)})
            except SafetensorError as error:
                raise WriteFailed(f"cannot write {path}: {error}; free space or fix permissions") from error
            sync_file(draft)

    def read(self, name: str, of: str = "") -> dict[str, NDArray[Any]] | None:
        """The arrays of a part; None where it is missing, torn, altered or of something else."""
        try:
            with safe_open(self._path(name), framework="numpy") as file:
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a mapping
                said = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        return arrays if said == _digest(arrays, of) else None

    def sweep(self) -> None:
        """Remove what is of other inputs and what was never finished; for one process, before ranks start."""
        for path in self._all.iterdir() if self._all.is_dir() else ():
            if path != self._folder:
                shutil.rmtree(path)
        for path in self._folder.rglob(f".*{TEMPORARY}"):
            path.unlink()

    def clear(self, *but: str) -> None:
        """Remove everything: the stage has its result; `but` names folders of parts that another stage reads."""
        if not but and self._all.is_dir():
            shutil.rmtree(self._all)
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.is_dir() and path.name not in but:
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _digest(arrays: Arrays, of: str) -> str:
    digest = hashlib.sha256(of.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
