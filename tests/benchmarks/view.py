"""The data set as of a cycle, out of core: `python -m tests.benchmarks.view OUT [POINTS]`.

A manifest on disk, a hundredth of its points removed and a thousandth relabelled, is exported in a fresh process: lists
and mask as files, the sha256 of the data set and of each file. What counts is the wall clock, and the highest resident
size above what is resident after the imports. Before the newest cycle, and one after which the data moved, what the
cycle started from is checked, which reads the manifest once more.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.exports import check_start, write_export
from storage.points import PARQUET
from storage.views import Decisions
from tests.benchmarks.rows import Row, write
from tests.benchmarks.setups import ROOT

POINTS, CHUNK, CLASSES = 100_000_000, 2**20, 100
SECONDS, MEGABYTES = 25.0, 600.0
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def main() -> None:
    """Measure both kinds of ids and write the rows."""
    if sys.argv[1] == "job":
        _job(Path(sys.argv[2]))
        return
    points = int(sys.argv[2]) if len(sys.argv) > 2 else POINTS
    write(Path(sys.argv[1]), [row for kind in ("integer", "string") for row in _measure(kind, points)])


def _measure(kind: str, points: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="tamis-view-") as name:
        folder = Path(name)
        _make(folder, kind, points)
        command = [sys.executable, "-m", "tests.benchmarks.view", "job", name]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        size = (folder / "manifest.parquet").stat().st_size / 1e9
    seconds, cpu, megabytes, check = map(float, done.stdout.split())
    on = f"{points:,} {kind} ids, 1 % removed, .1 % relabelled"
    note = f"{cpu:.0f} CPU s; manifest of {size:.1f} GB, written just before; lists, mask and every sha256"
    targets = (SECONDS, MEGABYTES) if points == POINTS else (None, None)
    return [
        Row("data set as of a cycle", on, seconds, "s", targets[0], note),
        Row("data set as of a cycle, memory", on, megabytes, "MB", targets[1], "peak above the imports"),
        Row("check of what a cycle started from", on, check, "s", None, "before the newest cycle is exported"),
    ]


def _make(folder: Path, kind: str, points: int) -> None:
    """A manifest, and decisions on some points of it; hashes and draws are those of the first chunk in every chunk."""
    rng, gone, changed = np.random.default_rng(0), list[pa.Table](), list[pa.Table]()
    id_type = pa.int64() if kind == "integer" else pa.string()
    fields = [("point_id", id_type), ("content", pa.string()), ("inputs", pa.string())]
    schema = pa.schema([*fields, ("label", pa.int32()), ("group", pa.string())])
    content, label = _hashes(rng, CHUNK), pa.array(rng.integers(0, CLASSES, CHUNK), pa.int32())
    removed, relabeled = np.split(rng.permutation(CHUNK)[: CHUNK * 11 // 1000], [CHUNK // 100])
    none = pa.nulls(CHUNK, pa.string())
    with pq.ParquetWriter(folder / "manifest.parquet", schema, **PARQUET) as file:
        for start in range(0, points, CHUNK):
            table = pa.table([_ids(kind, start, CHUNK), content, none, label, none], schema=schema)
            file.write_table(table.slice(0, points - start))
            gone.append(table.select(["point_id", "content"]).take(removed))
            changed.append(table.select(["point_id", "content", "label"]).take(relabeled))
    pq.write_table(pa.concat_tables(gone), folder / "removed.parquet")
    pq.write_table(pa.concat_tables(changed), folder / "relabeled.parquet")


def _ids(kind: str, start: int, count: int) -> pa.Array:
    numbers = pa.array(np.arange(start, start + count))
    if kind == "integer":
        return numbers
    digits = pc.utf8_lpad(pc.cast(numbers, pa.string()), 9, "0")
    return pc.binary_join_element_wise("images/", digits, ".png", "")


def _hashes(rng: np.random.Generator, count: int) -> pa.Array:
    raw = np.frombuffer(rng.bytes(32 * count), np.uint8)
    text = np.stack([HEX[raw >> 4], HEX[raw & 15]], 1)
    offsets = np.arange(0, 64 * count + 1, 64, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


def _job(folder: Path) -> None:
    before, started, cpu = _status("VmRSS"), time.monotonic(), time.process_time()
    decisions = Decisions(pq.read_table(folder / "removed.parquet"), pq.read_table(folder / "relabeled.parquet"))
    made = write_export(folder / "out", folder / "manifest.parquet", decisions, 1, None, text=False)
    seconds, spent, peak = time.monotonic() - started, time.process_time() - cpu, _status("VmHWM") - before
    started = time.monotonic()
    check_start(folder / "manifest.parquet", decisions, (1, made.dataset_sha256))
    print(seconds, spent, peak / 1024, time.monotonic() - started)


def _status(key: str) -> int:
    """kB, as the kernel keeps them of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


if __name__ == "__main__":
    main()
