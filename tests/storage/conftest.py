"""Where a ledger may be: in a file, or in a lake on a real PostgreSQL.

A call on a lake takes half a second, so the tests that both have in common are run on it in `make matrix`.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.lake import Lake
from tests import services
from tests.services import Service


@pytest.fixture(scope="session")
def new_lake(postgres: Service) -> Callable[[str | Path], Lake]:
    """Lakes that are not there yet, all in one catalog; given where their data go."""
    catalog, number = services.database(postgres, "ledgers"), itertools.count()
    return lambda data: Lake(catalog, str(data), f"ledger_{next(number)}")


PLACES = ["file", pytest.param("lake", marks=[pytest.mark.slow, pytest.mark.matrix])]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | Lake:
    """Where no ledger is yet."""
    if request.param == "file":
        return tmp_path / "ledger.duckdb"
    lake: Lake = request.getfixturevalue("new_lake")(tmp_path / "lake")
    return lake
