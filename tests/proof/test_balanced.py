"""What docs/redundancy.md is computed from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.proof import balanced
from tests.proof.balanced import SHARES, WAYS, Cell, kept, orders, page
from tests.proof.lds_truth import Labelled
from tests.proof.use_cells import Sets


def cell(of_all: float) -> Cell:
    left = {way: [of_all - place / 100, 0.5] for place, way in enumerate(WAYS)}
    return {"0%": {"nothing": [of_all, 0.5]}} | dict.fromkeys(SHARES, left)


def test_the_page_gives_the_gain_of_the_same_seed() -> None:
    text = page({"some task": [cell(0.8), cell(0.9)]})
    assert "With all points 85.00 ± 63.55." in text
    for share in SHARES:
        assert f"| {share} | balanced | 85.00 ± 63.55 | - | 0.500 ± 0.000 | - |" in text
        assert f"| {share} | random | 81.00 ± 63.55 | +4.00 ± 0.00 | 0.500 ± 0.000 | +0.000 ± 0.000 |" in text


def test_a_cell_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balanced, "measure", lambda sets, seed: cell(seed / 10))
    first = kept("Digits, 1,000 points", 3, tmp_path)
    monkeypatch.setattr(balanced, "measure", lambda sets, seed: pytest.fail("measured again"))
    assert kept("Digits, 1,000 points", 3, tmp_path) == first == cell(0.3)


def test_every_way_orders_all_points_and_balances_every_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balanced, "CHUNK", 40)
    generator = torch.Generator().manual_seed(0)
    points = Labelled(torch.randn(100, 12, generator=generator), torch.arange(100) % 10)
    found = orders(Sets(points, torch.zeros(100, dtype=torch.bool), points, points), 0)
    assert set(found) == set(WAYS)
    assert all(order.shape == (100,) and bool(order.isfinite().all()) for order in found.values())
    assert [float(part.max()) for part in found["balanced"].split(40)] == [1.0, 1.0, 1.0]
