"""Who is never touched, whatever a policy or a training says."""

from __future__ import annotations

from pathlib import Path

from flows.errors import BadInput
from flows.sections.curation import PruningConfig
from storage.errors import UnknownPoint
from storage.points import IdKind, Manifest, PointId, id_from_text

SHOWN = 3


def protected_ids(pruning: PruningConfig, kind: IdKind) -> frozenset[PointId]:
    """The ids that the configuration names, and those of its file.

    Raises:
        BadInput: The file cannot be read, or holds something else.
    """
    named = frozenset(pruning.protected)
    return named if pruning.protected_file is None else named | _read_ids(pruning.protected_file, kind)


def check_protected(pruning: PruningConfig, train: Manifest) -> None:
    """Check that whatever is protected is there: what nobody has would protect nothing.

    Raises:
        BadInput: The file cannot be read, an id is not in the train set, or no point is of a group.
    """
    known = set(train.ids)
    if unknown := [point for point in pruning.protected if point not in known]:
        raise BadInput(f"pruning.protected: {unknown[:SHOWN]} not in the train set ({train.id_kind} ids)")
    if missing := sorted(map(str, protected_ids(pruning, train.id_kind) - known)):
        raise BadInput(f"pruning.protected_file: {pruning.protected_file}: {missing[:SHOWN]} not in the train set")
    groups = set(train.table["group"].to_pylist())
    if without := [group for group in pruning.protected_groups if group not in groups]:
        raise BadInput(f"pruning.protected_groups: no point of the train set is of {without[:SHOWN]}")


def _read_ids(file: Path, kind: IdKind) -> frozenset[PointId]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return frozenset(id_from_text(line.strip(), kind) for line in lines if line.strip())
    except (OSError, UnicodeDecodeError, UnknownPoint) as error:
        raise BadInput(f"pruning.protected_file: {file}: {error}; give a text file of point ids, one a line") from error
