"""Planted errors in where tensors are: what is left on the CPU, or on the device; see `planted`."""

from typing import Any

import pytest
from torch import Tensor

from influence import compression
from influence.curvature.moments import ProductSum
from influence.curvature.roots import KeptRoots, RestorableOnRoots
from influence.factored import Factor
from tests import away  # noqa: F401, before any backward pass
from tests.planted import seen_by

LAYERS = "test_every_kind_of_layer_is_scored_where_it_is"
CURVATURES = "test_every_curvature_is_fitted_and_solved_where_the_model_is"
RESTORED = "test_a_curvature_kept_on_the_cpu_is_restored_to_where_the_model_is"


@seen_by("test_devices", LAYERS, "linear", False)
@seen_by("test_devices", CURVATURES, "dense")
def a_covariance_left_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    right = ProductSum.__init__
    patch.setattr(ProductSum, "__init__", lambda self, rows, columns, device=None: right(self, rows, columns))


@seen_by("test_devices", CURVATURES, "arnoldi")
def roots_left_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    right = KeptRoots.gather

    def wrong(self: KeptRoots, all_reduce: Any) -> Any:
        return {name: Factor(one.a.cpu(), one.g.cpu()) for name, one in right(self, all_reduce).items()}

    patch.setattr(KeptRoots, "gather", wrong)


@seen_by("test_devices", RESTORED, "arnoldi")
def what_was_kept_restored_to_the_cpu(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, snapshot: Any) -> None:
        self._kept.close()
        self._take({name: Factor(one["a"], one["g"]) for name, one in snapshot.items()}, snapshot[self.blocks[0]])

    patch.setattr(RestorableOnRoots, "restore", wrong)


@seen_by("test_devices", "test_every_compressor_is_drawn_as_on_the_cpu_and_lies_where_the_model_is", "mask")
def masks_left_where_they_were_drawn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compression, "on", lambda device, sketch: sketch)


@seen_by("test_devices", LAYERS, "linear", True)
def factors_kept_on_the_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tensor, "cpu", lambda self: self)
