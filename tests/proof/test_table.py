"""docs/estimators.md and docs/peers.md say what their generators say, also where their cells are not at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.benchmarks import peer_table
from tests.benchmarks.peer_methods import LEFT_OUT as LEFT_OUT_PEERS
from tests.benchmarks.peer_methods import ROWS as PEERS
from tests.proof import lds, table
from tests.proof.days import days
from tests.proof.run import ROOT
from tests.proof.table_rows import LEFT_OUT, ROWS, USES


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_the_page_has_the_protocol_and_the_uses_of_its_generator() -> None:
    page = text("estimators.md")
    assert table.PROTOCOL in page
    assert page.endswith("\n".join(table._uses()))


def test_the_peers_page_has_the_texts_of_its_generator() -> None:
    page = text("peers.md")
    assert peer_table.PROTOCOL in page
    assert page.endswith("\n".join([peer_table.WHY, *peer_table._settings()]))
    for row in (row for row in PEERS if row.library == "ours"):
        mark = "" if row.method in LEFT_OUT_PEERS else "**"
        assert f"| {mark}{peer_table._library(row)}{mark} | {row.method} |" in page


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_line_of_when_to_take_it_or_why_it_was_left_out(row: str) -> None:
    assert any(row.startswith(name) for key in (*USES, *LEFT_OUT) for name in key.split(", "))


def test_a_page_bears_the_days_of_its_cells(tmp_path: Path) -> None:
    assert days([]) == "-"
    for name, day in (("a", 20), ("b", 22), ("c", 21)):
        path = tmp_path / name
        path.touch()
        os.utime(path, (0, datetime(2026, 11, day, 12).timestamp()))
    assert days([tmp_path / "b"]) == "2026-11-22"
    assert days(tmp_path.iterdir()) == "2026-11-20 to 2026-11-22"


@pytest.mark.parametrize("head", [lds._head, peer_table._head], ids=["lds", "peers"])
def test_a_page_without_cells_bears_no_day(head: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert any(line.startswith("Measured -, ") for line in head(tmp_path))
