"""Any number of ranks, with the model whole on each or partitioned over them, gives the same scores."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.workload import load_workload
from storage import score_store
from tests.flows.helpers import launch
from tests.flows.test_ranks import here, proposal_of, score_plan, train_plan

MANY = {
    "ekfac": ({}, ("3", "4 partitioned", "2 split"), 1e-5),
    "compressed ekfac": (
        {"compression": {"kind": "mask", "ratio": 2}, "exact_head": False},
        ("2", "3 partitioned"),
        1e-5,
    ),
    "arnoldi": ({"estimator": "arnoldi"}, ("3 partitioned",), 1e-3),
}


EVERY_WORLD = ("2", "3", "4", *(f"{ranks} partitioned" for ranks in range(1, 5)))
ON_DIGITS: Mapping[str, dict[str, Any]] = {
    "ekfac": {},
    "ekfac, mask": {"compression": {"kind": "mask", "ratio": 4}, "exact_head": False},
    "ekfac, logra": {"compression": {"kind": "logra", "ratio": 4}, "exact_head": False},
    "arnoldi, mask+sjlt": {
        "estimator": "arnoldi",
        "compression": {"kind": "mask+sjlt", "ratio": 4},
        "exact_head": False,
    },
    "arnoldi": {"estimator": "arnoldi"},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY)
def test_any_number_of_ranks_with_the_model_whole_or_partitioned_gives_the_same_scores_and_proposal(
    one_rank: None, tmp_path: Path, case: str
) -> None:
    """Three chunks of 70, 70 and 60 points: two ranks have unlike shares, and four are more than there are chunks."""
    scoring, worlds, tolerance = MANY[case]
    here("train", train_plan(tmp_path))
    assert_alike_in(worlds, tmp_path, "tiny", scoring, tolerance)


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.parametrize("case", ON_DIGITS)
def test_digits_are_scored_alike_by_one_to_four_ranks_with_the_model_whole_or_partitioned_or_the_curvature_split(
    one_rank: None, tmp_path: Path, case: str
) -> None:
    here("train", train_plan(tmp_path, "digits"))
    tolerance = 1e-3 if case.startswith("arnoldi") else 1e-5
    worlds = (*EVERY_WORLD, "2 split", "3 split") if case == "ekfac" else EVERY_WORLD
    assert_alike_in(worlds, tmp_path, "digits", ON_DIGITS[case], tolerance)


def assert_alike_in(
    worlds: Sequence[str], folder: Path, entry: str, scoring: Mapping[str, Any], tolerance: float
) -> None:
    """Every column and the proposal, in each world as on one rank with the whole model."""
    tables, hashes = [], set()
    for world in ("1", *worlds):
        ranks, placement = int(world[0]), world[2:] or "replicated"
        how = {"ranks": ranks, "placement": placement, "probe": 0, "chunk": 70, **scoring}
        plan = score_plan(folder / world, folder, entry, launch={"oversubscribe": True}, **how)
        launch("score", plan, ranks) if ranks > 1 else here("score", plan)
        score_store.finish(plan.folder, math.ceil(len(load_workload(plan.config).points()) / 70))
        tables.append(score_store.read(plan.folder))
        hashes.add(proposal_of(plan.folder).hash)
    assert len(hashes) == 1
    worst = 0.0
    for field in tables[0].schema:
        if pa.types.is_floating(field.type):
            one = tables[0][field.name].drop_null().to_numpy()
            for other in tables[1:]:
                difference = np.linalg.norm(one - other[field.name].drop_null().to_numpy())
                assert difference <= tolerance * np.linalg.norm(one), field.name
                worst = max(worst, float(difference / np.linalg.norm(one)))
    print(f"{entry}, {dict(scoring)}: {len(worlds)} worlds beside one rank, at most {worst:.1g} apart")
