"""Who is never touched, whatever a policy or a training says."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from flows.errors import BadInput
from flows.printing import visible
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


def check_protected(pruning: PruningConfig, train: Manifest, workspace: Path) -> None:
    """Check that whatever is protected is there, or was in an earlier cycle: what nobody has would protect nothing.

    Raises:
        BadInput: The file cannot be read, or neither the train set nor that of an earlier cycle in the workspace has
            an id, or a point of a group.
        storage.errors.StorageError: The train set of an earlier cycle cannot be read.
    """
    ids, groups = _not_there(pruning, train)
    for path in sorted(workspace.glob("cycles/*/manifest.parquet"), reverse=True):
        if not ids | groups:
            return
        earlier = Manifest.read(path)
        ids, groups = ids.difference(earlier.ids), groups.difference(earlier.table["group"].to_pylist())
    what = "not in the train set of this or an earlier cycle"
    if unknown := [point for point in pruning.protected if point in ids]:
        raise BadInput(f"pruning.protected: {unknown[:SHOWN]} {what} ({train.id_kind} ids)")
    if missing := sorted(map(str, ids)):
        raise BadInput(f"pruning.protected_file: {pruning.protected_file}: {missing[:SHOWN]} {what}")
    if without := sorted(groups):
        raise BadInput(f"pruning.protected_groups: {without[:SHOWN]}: no point of them {what}")


def vanished(pruning: PruningConfig, train: Manifest) -> str:
    """What is protected and not in the data any more, in a line; empty where all is there.

    Raises:
        BadInput: The file cannot be read.
    """
    ids, groups = _not_there(pruning, train)
    parts = [
        f"{len(names):,} protected {what}{'s' * (len(names) > 1)} ({_some(names)})"
        for what, names in (("id", ids), ("group", groups))
        if names
    ]
    return f"no longer hold {' and '.join(parts)}" if parts else ""


def _not_there(pruning: PruningConfig, train: Manifest) -> tuple[frozenset[PointId], frozenset[str]]:
    """The protected ids and groups that a train set does not have."""
    ids = protected_ids(pruning, train.id_kind)
    groups = frozenset(pruning.protected_groups)
    return (
        ids.difference(train.ids) if ids else ids,
        groups.difference(train.table["group"].to_pylist()) if groups else groups,
    )


def _some(names: Collection[PointId]) -> str:
    shown = sorted(map(str, names))
    return visible(", ".join(shown[:SHOWN])) + ", …" * (len(shown) > SHOWN)


def _read_ids(file: Path, kind: IdKind) -> frozenset[PointId]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return frozenset(id_from_text(line.strip(), kind) for line in lines if line.strip())
    except (OSError, UnicodeDecodeError, UnknownPoint) as error:
        raise BadInput(f"pruning.protected_file: {file}: {error}; give a text file of point ids, one a line") from error
