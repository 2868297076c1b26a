"""Desks at which a cycle waits for a review: made once, copied for each test."""

from pathlib import Path
from typing import Any

import pytest

from tests.flows.desk import Desk, Opened, copied, open_desk


@pytest.fixture
def opened(tmp_path: Path, mlflow_store: Path) -> Opened:
    """A desk under settings of [review]."""
    return lambda **terms: open_desk(tmp_path, mlflow_store, **terms)


def waiting(folder: Path, store: Path, **terms: Any) -> Desk:
    desk = open_desk(folder, store, **terms)
    assert desk.review().decision == "awaiting"
    return desk


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Desk:
    return waiting(tmp_path_factory.mktemp("one"), mlflow_store)


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Desk:
    return waiting(tmp_path_factory.mktemp("two"), mlflow_store, second_person_above=0.05)


@pytest.fixture
def desk(one: Desk, tmp_path: Path) -> Desk:
    """A desk at which any one person may decide, and that waits."""
    return copied(one, tmp_path)


@pytest.fixture
def pair(two: Desk, tmp_path: Path) -> Desk:
    """A desk that takes two persons, since 4 of 60 points are more than 5 %, and that waits."""
    return copied(two, tmp_path)
