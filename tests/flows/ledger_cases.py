"""Cycles in a ledger that nobody had to train, with scores and manifests."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.config import load
from flows.ranks.shards import TOP_QUERIES
from flows.stages import cycle_folder
from flows.stores import ledger_of
from storage.points import Manifest
from storage.proposals import Proposal
from tests.flows.helpers import write_toml

N = 8
INFLUENCE = [-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0]


def manifest(ids: range, content: str = "c") -> Manifest:
    return Manifest.build(ids, [f"{content}{i}" for i in ids], [f"i{i}" for i in ids], [i % 2 for i in ids])


def write_scores(folder: Path, influence: list[float], removed: set[int]) -> None:
    """Point i harms query q<i> most and helps query h<i>; the q-value of its harm is i/10."""
    tops = [[{"query_id": f"h{i}", "influence": 0.5}, {"query_id": f"q{i}", "influence": -0.5}] for i in range(N)]
    table = pa.table(
        {
            "point_id": list(range(N)),
            "in_train": [i not in removed for i in range(N)],
            "influence": influence,
            "influence_se": [1.0] * N,
            "harmful_q": [i / 10 for i in range(N)],
            "top_queries": pa.array(tops, TOP_QUERIES),
        }
    )
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-r000-c00000.parquet")
    (folder / "MANIFEST.json").write_text("{}")


def proposed(cycle: int, points: list[int], action: str, new_label: int | None = None) -> Proposal:
    count = len(points)
    rows = {
        "point_id": points,
        "action": [action] * count,
        "new_label": pa.array([new_label] * count, pa.int32()),
        "reason": ["harmful"] * count,
        "score": [-0.5] * count,
        "threshold": [0.2] * count,
    }
    return Proposal(cycle, pa.table(rows), "d", "s", {"cycle": cycle})


def settings(file: Path) -> dict[str, Any]:
    return load(file).model_dump(mode="json", by_alias=True)


def three_cycles(folder: Path) -> Path:
    """Cycle 1 removes 0, 1 and 2; cycle 2 relabels 3; cycle 3 is open, without 2 in its data, and has scored."""
    path = write_toml(folder, pruning={"policies": ["harmful"], "protected": [4], "harmful_q": 0.45})
    config = load(path)
    ledger = ledger_of(config)
    ledger.path.parent.mkdir()
    for cycle, points, action in ((1, [0, 1, 2], "remove"), (2, [3], "relabel")):
        ledger.open_cycle(cycle, "d", settings(path), {}, "int")
        made = proposed(cycle, points, action, 1 if action == "relabel" else None)
        ledger.add_proposal(made)
        ledger.add_review(made.hash, "approve", "ada", "cli")
        ledger.apply_proposal(cycle, made.hash, manifest(range(N)), "ekfac", "k" * 64)
        ledger.record_event(cycle, "promoted")
        kept = cycle_folder(config, cycle)
        write_scores(kept / "scores", INFLUENCE, removed={0, 1, 2} if cycle == 2 else set())
        manifest(range(N)).write(kept / "manifest.parquet")
    ledger.open_cycle(3, "d", settings(path), {}, "int")
    kept = cycle_folder(config, 3)
    write_scores(kept / "scores", [0.5, 3.0, 2.0, *INFLUENCE[3:]], removed={0, 1, 2})
    manifest(range(3, N)).write(kept / "manifest.parquet")
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())
