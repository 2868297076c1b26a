"""Which checkpoints of earlier cycles stay on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from storage import checkpoints
from storage.checkpoints import MANIFEST
from storage.files import read_json, sha256_json


def retire(cycles: Path, keep: Mapping[str, int], cited: Collection[str]) -> tuple[Path, ...]:
    """Remove the checkpoints of older cycles, role by role.

    Args:
        cycles: Folder of the cycles, `000001/checkpoints/<role>-…/step-…`.
        keep: Of how many cycles, the newest, a role's checkpoints stay; a role that is not named keeps all.
        cited: Digests of those that stay in any case.

    Returns:
        What was removed.
    """
    numbered, gone = sorted(cycles.glob("[0-9]*")), []
    for role, newest in keep.items():
        for cycle in numbered[: max(0, len(numbered) - newest)]:
            for found in sorted(cycle.glob(f"checkpoints/{role}-*/step-*/{MANIFEST}")):
                if sha256_json(read_json(found)) not in cited:
                    checkpoints.remove(found.parent)
                    gone.append(found.parent)
    return tuple(gone)
