"""The choice of blocks: the same on any number of ranks, and compared with all parameters of the model."""

import copy
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flows.config import Config, load
from flows.errors import BadInput
from flows.ranks.attribution import Attribution, Setting
from flows.ranks.blocks import PROBE, drawn, measure_energies
from flows.ranks.points import Points
from flows.ranks.probe import Exact, probe
from flows.ranks.rank import Alone
from flows.trust import Probe, described
from influence import Agreement, BlockSummary, Share, by_name, select
from tests.flows.blobs import Blobs
from tests.flows.helpers import write_toml
from tests.influence.cases import on_two_ranks

ALONE = Alone(lambda *_: None)


class Ranked:
    """One of two ranks that are threads."""

    def __init__(self, share: Share, all_reduce: Callable[[Tensor], None]) -> None:
        self.index, self.world, self.sum = share.rank, share.world, all_reduce

    def progress(self, phase: str, done: int, total: int) -> None:
        """Nobody watches."""


@pytest.fixture(scope="module")
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture(scope="module")
def points(blobs: Blobs) -> Points:
    return Points("train", blobs.points(), blobs, removed={5, 6})


@pytest.fixture(scope="module")
def queries(blobs: Blobs) -> Points:
    return Points("query", blobs.queries(), blobs)


def fitted(blobs: Blobs, points: Points) -> nn.Module:
    """Trained by plain full-batch gradient descent."""
    torch.manual_seed(0)
    model = blobs.model()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    batch = points.take(range(len(points)))
    for _ in range(60):
        optimizer.zero_grad()
        blobs.loss(model, batch).mean().backward()
        optimizer.step()
    return model


def test_points_are_drawn_by_their_ids_from_those_in_training(points: Points) -> None:
    few, many = drawn(points, 10), drawn(points, 50)
    assert few.tolist() == sorted(few.tolist())
    assert set(few.tolist()) <= set(many.tolist())  # a larger probe only adds points
    assert len(drawn(points, 10**6)) == 118
    assert not {5, 6} & set(drawn(points, 10**6).tolist())


def test_energies_are_mean_squared_gradient_norms_over_the_probe(blobs: Blobs, points: Points) -> None:
    model = fitted(blobs, points)
    found = measure_energies(model, blobs, points, ALONE)
    expected = {"hidden": 0.0, "head": 0.0}
    places = drawn(points, PROBE)
    for place in places.split(1):
        model.zero_grad()
        blobs.loss(model, points.take(place)).sum().backward()
        for name, layer in (("hidden", model.hidden), ("head", model.head)):
            expected[name] += sum(float(p.grad.double().square().sum()) for p in layer.parameters()) / len(places)
    assert found == pytest.approx(expected, rel=1e-6)  # float32 gradients


def test_energies_are_the_same_to_the_last_bit_on_any_number_of_ranks(blobs: Blobs, points: Points) -> None:
    model = fitted(blobs, points)
    one = measure_energies(model, blobs, points, ALONE)
    two = on_two_ranks(
        lambda share, all_reduce: measure_energies(copy.deepcopy(model), blobs, points, Ranked(share, all_reduce))
    )
    assert two == [one, one]


def run(folder: Path, blobs: Blobs, points: Points, queries: Points, **scoring: Any) -> Probe:
    """The probe of a trained model."""
    config = load(write_toml(folder, scoring={"probe": 20, **scoring}))
    model = fitted(blobs, points)
    setting = setting_of(config, measure_energies(model, blobs, points, ALONE), folder)
    with Attribution(model, blobs, setting, points, ALONE) as attribution:
        attribution.fit("fitting")
        attribution.prepare(queries)
        found = probe(setting, blobs, fitted(blobs, points), attribution, points, queries, ALONE)
    assert found is not None
    return found


def setting_of(config: Config, energies: dict[str, float], folder: Path) -> Setting:
    return Setting(config=config, energies=energies, horizon=10.0, checkpoints=1, folder=folder)


def test_an_exact_estimator_on_all_parameters_is_the_truth(
    tmp_path: Path, blobs: Blobs, points: Points, queries: Points
) -> None:
    found = run(tmp_path, blobs, points, queries, estimator="dense")
    assert (found.points, found.queries, found.curvature_points, found.parameters) == (20, 10, 118, 51)
    assert found.damping == pytest.approx(1 / 10.0 + 0.1)
    assert found.blocks == Agreement(pytest.approx(1), pytest.approx(1), 0.0)
    # both in float32, and the truth stops at a residual of 1e-3
    assert found.estimator.error is not None
    assert found.estimator.error < 5e-3
    assert found.estimator.pairs == pytest.approx(1, abs=1e-3)
    assert found.trusted


def test_blocks_that_leave_something_out_are_measured_apart_from_the_estimator(
    tmp_path: Path, blobs: Blobs, points: Points, queries: Points
) -> None:
    exact = run(tmp_path, blobs, points, queries, estimator="dense", blocks=["head"])
    assert exact.blocks.error is not None
    assert exact.blocks.error > 0.05  # the head is half of the parameters
    assert astuple(exact.estimator) == pytest.approx(astuple(exact.blocks), abs=5e-3)
    plain = run(tmp_path, blobs, points, queries, estimator="identity", blocks=["head"])
    assert plain.damping == exact.damping  # the identity has none of its own
    assert plain.blocks == exact.blocks
    assert plain.estimator != exact.estimator


def test_ranks_deal_the_queries_among_them(blobs: Blobs, points: Points, queries: Points) -> None:
    def part(index: int, world: int) -> Tensor:
        exact = Exact(fitted(blobs, points), blobs, points, queries, Alone(ALONE.show, index, world))
        return exact.influence(drawn(points, 10), drawn(queries, 7), exact.learned, 0.1)

    whole, parts = part(0, 1), [part(0, 2), part(1, 2)]
    assert ((parts[0] != 0) != (parts[1] != 0)).all()  # each fills in what the other has left zero
    # float32, and conjugate gradients may stop one iteration apart
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=2e-3, atol=1e-3 * float(whole.abs().max()))


def test_blocks_of_which_nothing_is_trained_are_refused(blobs: Blobs, points: Points) -> None:
    model = blobs.model()
    model.hidden.requires_grad_(False)
    exact = Exact(model, blobs, points, points, ALONE)
    with pytest.raises(BadInput, match="no parameter of the blocks hidden is trained"):
        exact.within(select(model, by_name("hidden")))
    assert exact.within(select(model)) == ["head.weight", "head.bias"]


def test_no_probe_is_run_where_none_is_wanted(tmp_path: Path, blobs: Blobs, points: Points, queries: Points) -> None:
    config = load(write_toml(tmp_path, scoring={"probe": 0}))
    unused: Any = None
    assert probe(setting_of(config, {}, tmp_path), blobs, unused, unused, points, queries, ALONE) is None


HALF = Agreement(0.5, 0.6, 0.9)


@pytest.mark.parametrize(
    ("blocks", "trusted", "parts"),
    [
        (Agreement(1.0, 1.0, 0.0), True, ("trusted, the blocks are all that is trained", "ekfac on the blocks 0.50")),
        (
            Agreement(0.9, 0.95, 0.2),
            True,
            ("trusted;", "exact on the blocks 0.90 (error 0.20)", "on the mean"),
        ),
        (Agreement(0.89, 0.95, 0.2), False, ("WARNING, not trusted: select more blocks (scoring.blocks)", "0.89")),
        (Agreement(None, None, None), False, ("WARNING, not known", "did not converge", "raise scoring.damping")),
    ],
)
def test_the_verdict_names_the_remedy(blocks: Agreement, trusted: bool, parts: tuple[str, ...]) -> None:
    found = Probe(50, 20, 1000, 6570, 0.1, blocks, HALF)
    assert found.trusted is trusted
    for part in parts:
        assert part in found.verdict("ekfac")
    assert "\n" not in found.verdict("ekfac")
    assert all(np.isfinite(value) for value in found.metrics.values())


def test_the_blocks_are_described_by_their_share_of_the_model() -> None:
    few = BlockSummary(("a", "b"), 1234, 0.25, 0.875)
    assert described(few) == "a, b: 1,234 parameters, 25.0% of the model, 87.5% of the gradient energy"
    many = BlockSummary(tuple(map(str, range(9))), 9, 1.0)
    assert described(many) == "0 … 8 (9 blocks): 9 parameters, 100.0% of the model"
