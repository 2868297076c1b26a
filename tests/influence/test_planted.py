from importlib import import_module

import pytest

import tests.planted_arnoldi
import tests.planted_attime
import tests.planted_battery
import tests.planted_compression
import tests.planted_conformity
import tests.planted_curvature
import tests.planted_devices
import tests.planted_layouts
import tests.planted_removal
import tests.planted_slices
import tests.planted_solvers
import tests.planted_stages
import tests.planted_tokens
import tests.planted_trajectory  # noqa: F401, enters its plants
from tests.planted import PLANTS, Plant


@pytest.mark.parametrize("plant", PLANTS, ids=[f"{plant.name}, {plant.module}" for plant in PLANTS])
def test_a_planted_error_is_seen(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    module = plant.module if "." in plant.module else f"influence.{plant.module}"
    check = getattr(import_module(f"tests.{module}"), plant.check)
    check(*plant.arguments)  # holds for the engine as it is
    plant.apply(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(*plant.arguments)
