"""Checkpoints of earlier cycles go by role and count; what the ledger cites stays."""

from pathlib import Path

from storage.retention import retire
from tests.storage.test_checkpoints import commit


def names(gone: tuple[Path, ...], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix().replace("/checkpoints", "") for path in gone]


def test_each_role_keeps_its_newest_cycles_and_whatever_is_cited(tmp_path: Path) -> None:
    digests = {}
    for cycle in (1, 2, 10):
        for role in ("baseline-seed0-aa", "challenger-seed0-bb", "champion"):
            for step in (5, 10):
                path = tmp_path / f"{cycle:06d}" / "checkpoints" / role
                digests[cycle, role, step] = commit(path, step, cycle + 0.01 * len(role)).digest
    cited = {digests[1, "baseline-seed0-aa", 10]}
    gone = retire(tmp_path, {"baseline": 2, "challenger": 1}, cited)
    assert names(gone, tmp_path) == [
        "000001/baseline-seed0-aa/step-000005",
        "000001/challenger-seed0-bb/step-000005",
        "000001/challenger-seed0-bb/step-000010",
        "000002/challenger-seed0-bb/step-000005",
        "000002/challenger-seed0-bb/step-000010",
    ]
    assert not any(path.exists() for path in gone)
    assert retire(tmp_path, {"baseline": 2, "challenger": 1}, cited) == (), "once is enough"


def test_fewer_cycles_than_are_kept_lose_nothing(tmp_path: Path) -> None:
    commit(tmp_path / "000001" / "checkpoints" / "control-seed1-cc", 5)
    assert retire(tmp_path, {"control": 3}, ()) == ()
    assert retire(tmp_path / "none", {"control": 3}, ()) == ()
