"""From score shards to a proposal on disk: seconds and peak memory, `python -m tests.benchmarks.selection OUT [ROWS]`.

Shards of a million rows each, with numbers that do not compress, 100 classes, one row in fifty removed earlier, and a
tenth of the others candidates of two policies; a hundredth of them goes. A process of its own selects: its highest
resident size is all of it, interpreter and libraries included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from storage.budgets import Budgets
from storage.policies import Rule, policy_json
from storage.proposals import Proposal
from storage.score_sql import MEMORY
from storage.selection import select
from tests.benchmarks.rows import Row, write

ROWS, SHARD = 100_000_000, 1_000_000
IDS = {"integer ids": "row", "string ids": "'train/' || row % 100 || '/' || row"}
SHARDS = """
COPY (
    SELECT {id} AS point_id, 2 AS cycle, row % 50 > 0 AS in_train, {uniform} * 3 AS loss,
           CAST(hash(row, 'label') % 100 AS INTEGER) AS label, {uniform} - 0.2 AS influence, {uniform} AS influence_se,
           {uniform} AS self_influence, CAST(hash(row, 'other') % 100 AS INTEGER) AS suggested_label,
           least(1, {uniform} * 4) AS harmful_q, least(1, {uniform} * 4) AS mislabeled_q
    FROM (SELECT (i * 7919) % {rows} AS row FROM range({first}, {last}) numbers(i))
) TO '{file}' (FORMAT parquet, COMPRESSION zstd)
"""
SECONDS, GIGABYTES = 90.0, 3.0


def main() -> None:
    """Measure both kinds of ids, and write rows of the table."""
    out, rows = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ROWS
    write(out, [row for kind in IDS for row in _measure(kind, rows)])


def _measure(kind: str, rows: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), IDS[kind], rows)
        command = [sys.executable, "-m", "tests.benchmarks.selection", "select", folder]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    on = f"{rows:,} rows, {kind}"
    note = f"{found['candidates']:,} candidates, {found['proposed']:,} proposed; {found['cpu']:.0f} s of CPU"
    return [
        Row("scores to proposal", on, found["seconds"], "s", SECONDS, note),
        Row("peak memory of it", on, found["peak"], "GB", GIGABYTES, f"DuckDB may take {MEMORY}"),
    ]


def _write(folder: Path, ids: str, rows: int) -> None:
    with duckdb.connect(":memory:") as con:
        for number, first in enumerate(range(0, rows, SHARD)):
            query = SHARDS
            for column in range(query.count("{uniform}")):
                query = query.replace("{uniform}", f"(hash(row, {column}) >> 11) / 9007199254740992.0", 1)
            file = folder / f"part-r000-c{number:05d}.parquet"
            con.execute(query.format(id=ids, rows=rows, first=first, last=min(rows, first + SHARD), file=file))


def _select(folder: Path) -> None:
    rules = [Rule(policy, policy, f"{policy}_q", "<=", 0.2, {"q": 0.2}) for policy in ("harmful", "mislabeled")]
    budgets = Budgets(cycle=0.01, cumulative=0.3, per_class=0.5)
    started, cpu = time.perf_counter(), time.process_time()
    selection = select(folder, rules, budgets)
    proposal = Proposal.build(2, selection, "0" * 64, "0" * 64, policy_json(rules, budgets))
    with tempfile.TemporaryDirectory() as written:
        proposal.write(Path(written))
    found = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "peak": _peak(),
        "candidates": sum(selection.candidates.values()),
        "proposed": proposal.size,
    }
    print(json.dumps(found))


def _peak() -> float:
    """GB of the highest resident size (VmHWM: ru_maxrss would remember the process that started this one)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9


if __name__ == "__main__":
    if sys.argv[1] == "select":
        _select(Path(sys.argv[2]))
    else:
        main()
