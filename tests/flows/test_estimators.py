"""The registry of estimators: every name of the configuration is built, damped and described."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from flows.cli import estimators
from flows.config import load
from flows.errors import BadInput
from flows.estimators import ESTIMATORS, damping_of, selections
from flows.ranks.kept import Kept, keep_fitted, recall
from flows.ranks.rank import Alone
from flows.sections.scoring import BlocksConfig, DampingConfig, EstimatorName
from influence import Curvature, Damping, Share, Task, UnknownBlock, fit, materialise, select
from influence.reader import Reader
from storage.parts import Parts
from tests.flows.helpers import write_toml


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def test_every_estimator_of_the_configuration_is_in_the_registry_with_what_a_user_wants_to_know() -> None:
    assert list(ESTIMATORS) == list(get_args(EstimatorName))
    for estimator in ESTIMATORS.values():
        for said in (estimator.exactness, estimator.cost, estimator.memory, estimator.use):
            assert said


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("last", [1, None])
def test_every_estimator_is_fitted_and_solves_what_it_multiplies(name: EstimatorName, last: int | None) -> None:
    net = model()
    blocks = select(net, *selections(BlocksConfig(last=last), {}))
    curvature: Curvature = ESTIMATORS[name].build(blocks, Share())
    x, labels = torch.randn(40, 4), torch.randint(3, (40,))
    task = Task[tuple[torch.Tensor, torch.Tensor]](lambda net, batch: net(batch[0]), lambda batch: batch[1])
    with Reader(net, task, blocks) as reader:
        reading = reader.train((x, labels), 0, torch.arange(40))
    fit([curvature], lambda: iter([(reading, torch.ones(40))]))
    curvature.finish(Damping("absolute", 0.1))
    found = curvature.diagnostics().values()
    bound = 1e-4 if name == "arnoldi" else 1e-5  # float32 iterations; float64, and conjugate gradients stop at 1e-6
    assert all(one.residual < bound for one in found), found
    assert {one.damping for one in found} == {0.1}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("last", [1, None])
def test_an_estimator_restored_from_files_gives_the_same_bits(
    name: EstimatorName, last: int | None, tmp_path: Path
) -> None:
    net, keep, alone = model(), Kept(Parts(tmp_path, "a")), Alone(lambda *_: None)
    blocks = select(net, *selections(BlocksConfig(last=last), {}))
    first, second = (ESTIMATORS[name].build(blocks, Share()) for _ in range(2))
    x, labels = torch.randn(40, 4), torch.randint(3, (40,))
    task = Task[tuple[torch.Tensor, torch.Tensor]](lambda net, batch: net(batch[0]), lambda batch: batch[1])
    with Reader(net, task, blocks) as reader:
        reading = reader.train((x, labels), 0, torch.arange(40))
    assert not recall({"it": second}, keep, "checkpoint", alone)
    fit([first], lambda: iter([(reading, torch.ones(40))]))
    keep_fitted({"it": first}, keep, "checkpoint", alone)
    assert not recall({"it": second}, keep, "another checkpoint", alone)
    assert recall({"it": second}, keep, "checkpoint", alone)
    for curvature in (first, second):
        curvature.finish(Damping("mean_eig", 0.5) if name != "identity" else Damping("absolute", 0.1))
    one, other = (curvature.own(reading.losses, step=True) for curvature in (first, second))
    assert one.self_influence.equal(other.self_influence)
    assert one.squared_step is not None
    assert other.squared_step is not None
    assert one.squared_step.equal(other.squared_step)
    assert first.diagnostics() == second.diagnostics()
    gradients = {name: materialise(factor) for name, factor in reading.losses.items()}
    solved = [curvature.solve(gradients) for curvature in (first, second)]
    assert all(solved[0][name].equal(solved[1][name]) for name in gradients)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ekfac", Damping("absolute", 0.1)),
        ("kfac", Damping("absolute", 0.1)),
        ("dense", Damping("horizon", 7.0, 0.1)),
        ("dual", Damping("horizon", 7.0, 0.1)),
        ("arnoldi", Damping("horizon", 7.0, 0.1)),
        ("pcg", Damping("horizon", 7.0, 0.1)),
        ("identity", Damping("absolute", 1.0)),
    ],
)
def test_the_damping_that_holds_where_none_is_given(tmp_path: Path, name: EstimatorName, expected: Damping) -> None:
    config = load(write_toml(tmp_path))
    assert damping_of(config, name, None, 7.0) == expected


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_damping_that_is_given_holds_for_every_estimator(tmp_path: Path, name: EstimatorName) -> None:
    config = load(write_toml(tmp_path))
    assert damping_of(config, name, DampingConfig(kind="absolute", value=3.0), 7.0) == Damping("absolute", 3.0)
    assert damping_of(config, name, DampingConfig(kind="mean_eig", value=0.2), None) == Damping("mean_eig", 0.2)
    assert damping_of(config, name, DampingConfig(), 7.0) == Damping("horizon", 7.0, 0.1)


def test_a_horizon_without_a_training_is_refused_with_the_remedy(tmp_path: Path) -> None:
    config = load(write_toml(tmp_path))
    with pytest.raises(BadInput, match=r"dense is 'horizon'.*trained elsewhere: give scoring.damping = \{ kind"):
        damping_of(config, "dense", None, None)


def test_each_key_narrows_what_the_keys_before_it_left() -> None:
    net = model()
    energies = {"0": 1.0, "2": 8.0, "4": 1.0}

    def names(**keys: object) -> list[str]:
        return [block.name for block in select(net, *selections(BlocksConfig.model_validate(keys), energies))]

    assert names() == ["0", "2", "4"]
    assert names(types=["Linear"], names=["[02]"]) == ["0", "2"]
    assert names(names=["[02]"], last=1) == ["2"]
    assert names(energy=0.7) == ["2"]
    assert names(names=["[04]"], energy=0.7) == ["0", "4"]  # each holds half of what these two hold
    assert names(energy=0.9, last=1) == ["4"]
    assert names(last=2, budget=20) == ["4"]
    with pytest.raises(UnknownBlock, match="budget of 5"):
        names(budget=5)


def test_the_command_lists_every_estimator(capsys: pytest.CaptureFixture[str]) -> None:
    estimators(as_json=False)
    table = capsys.readouterr().out
    assert all(name in table for name in ESTIMATORS)
    estimators(as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(ESTIMATORS)
    assert all(row.keys() == {"name", "exactness", "cost", "memory", "use"} for row in rows)


def test_the_readme_lists_them_too() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name, one in ESTIMATORS.items():
        python = type(one.build(select(model()), Share())).__name__
        assert f"| `{name}` | `{python}` | {one.exactness} | {one.cost} | {one.memory} | {one.use} |" in readme
