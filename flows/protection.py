"""Who is never touched, whatever a policy or a training says."""

from __future__ import annotations

from pathlib import Path

from flows.errors import BadInput
from flows.sections.curation import PruningConfig
from storage.errors import UnknownPoint
from storage.points import IdKind, PointId, id_from_text


def protected_ids(pruning: PruningConfig, kind: IdKind) -> frozenset[PointId]:
    """The ids that the configuration names, and those of its file.

    Raises:
        BadInput: The file cannot be read, or holds something else.
    """
    named = frozenset(pruning.protected)
    return named if pruning.protected_file is None else named | _read_ids(pruning.protected_file, kind)


def _read_ids(file: Path, kind: IdKind) -> frozenset[PointId]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return frozenset(id_from_text(line.strip(), kind) for line in lines if line.strip())
    except (OSError, UnicodeDecodeError, UnknownPoint) as error:
        raise BadInput(f"pruning.protected_file: {file}: {error}; give a text file of point ids, one a line") from error
