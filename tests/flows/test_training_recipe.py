"""Every key of the recipe trains the model that plain torch trains by it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.config import load
from flows.errors import BadInput
from flows.plans import TrainPlan
from flows.ranks.activations import recompute
from flows.ranks.engine import settings_of
from flows.ranks.plain import train_plainly
from flows.ranks.points import Points
from flows.recipe import horizon, learning_rate
from flows.sections.training import TrainingConfig
from flows.workloads.tiny import Tiny
from tests.flows.helpers import launch, write_toml
from tests.flows.test_ranks import STEPS, assert_same, here, train_plan, weights
from tests.flows.texts import save_bert, sentences, texts_of

DEPLOY = Path(__file__).parents[2] / "deploy" / "deepspeed"
PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # the smallest parameters, too
RECIPE = {"schedule": "cosine", "warmup": 0.2, "clipping": 0.5, "deepspeed": PARTITIONED}


def plainly(plan: TrainPlan) -> dict[str, np.ndarray[Any, Any]]:
    """What the plan's first job comes to in plain torch, in float32."""
    workload, saved = Tiny(), {}

    def keep(model: torch.nn.Module) -> None:
        saved.update({name: value.numpy().copy() for name, value in model.state_dict().items()})

    points = Points("train", workload.points(), workload)
    train_plainly(workload, points, plan.config.training, torch.arange(200), 3, STEPS, (STEPS,), keep)
    return saved


@pytest.mark.parametrize(
    "recipe",
    [
        {"zero_stage": 0, "schedule": "linear"},
        {"zero_stage": 0, "accumulation": 4},
        {"zero_stage": 1, "accumulation": 4},
        {"zero_stage": 2, "accumulation": 2, "offload": "cpu"},
        {"zero_stage": 3, "accumulation": 2, "offload": "cpu", "activation_checkpointing": ["0", "2"]},
        {"zero_stage": 3, "deepspeed": str(DEPLOY / "zero3-lean.json")},
        {"zero_stage": 2, "deepspeed": str(DEPLOY / "buckets.json")},
    ],
    ids=str,
)
def test_a_recipe_trains_the_model_that_plain_torch_trains_by_it(
    one_rank: None, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    plan = train_plan(tmp_path, **(RECIPE | recipe))
    here("train", plan)
    assert_same(weights(tmp_path), plainly(plan))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_a_recipe_on_two_ranks_trains_that_model_too(tmp_path: Path, stage: int) -> None:
    plan = train_plan(tmp_path, ranks=2, zero_stage=stage, accumulation=2, **RECIPE)
    launch("train", plan, 2)
    assert_same(weights(tmp_path), plainly(plan))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_trains_nearly_that_model_and_its_weights_are_bf16(one_rank: None, tmp_path: Path, stage: int) -> None:
    plan = train_plan(tmp_path, zero_stage=stage, precision="bf16", **RECIPE)
    here("train", plan)
    names = sorted(weights(tmp_path))
    trained, exact = (np.concatenate([one[n].ravel() for n in names]) for one in (weights(tmp_path), plainly(plan)))
    assert np.array_equal(trained, torch.from_numpy(trained).bfloat16().float().numpy())
    # bfloat16 rounds to 2^-8, and AdamW's first steps are signs; .06 where one more step is counted
    assert 0 < np.linalg.norm(trained - exact) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize("change", [{"clipping": 0.0}, {"schedule": "linear"}, {"warmup": 0.0}])
def test_no_key_of_the_comparison_is_without_effect(tmp_path: Path, change: dict[str, Any]) -> None:
    one, other = (plainly(train_plan(tmp_path, **(RECIPE | keys))) for keys in ({}, change))
    assert max(np.abs(one[name] - other[name]).max() for name in one) > 1e-3


def test_the_learning_rate_rises_in_the_warmup_and_falls_to_the_end_and_the_horizon_is_its_sum() -> None:
    def rates(**keys: Any) -> list[float]:
        training = TrainingConfig(learning_rate=1.0, **keys)
        found = [learning_rate(training, step, 10) for step in range(1, 11)]
        assert horizon(training, 10, 10) == pytest.approx(sum(found), rel=1e-12)
        return found

    assert rates() == [1.0] * 10
    assert rates(warmup=0.4) == [0.25, 0.5, 0.75, 1.0] + [1.0] * 6
    assert rates(schedule="linear") == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    cosine = rates(schedule="cosine", warmup=0.2)
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)  # halfway down
    assert sorted(cosine[2:], reverse=True) == cosine[2:]
    assert cosine[-1] > 0


def test_a_glob_that_matches_no_module_is_refused() -> None:
    with pytest.raises(BadInput, match=r"'encoder\*' matches no module; the model has 0, 1"):
        recompute(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU()), ["encoder*"])


def test_activations_of_the_named_modules_are_computed_again() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    passes = []
    model[1][0].register_forward_pre_hook(lambda *_: passes.append(None))
    recompute(model, ["1"])
    model(torch.ones(1, 2)).sum().backward()
    assert len(passes) == 2


def test_of_modules_in_one_another_the_outermost_is_computed_again(tmp_path: Path) -> None:
    workload = texts_of(tmp_path, save_bert(tmp_path / "bert"), sentences(60))
    model, batch = workload.model(), workload.collate([workload.points()[0]])
    passes: Counter[str] = Counter()
    for name, module in model.named_modules():
        if ".layer." in name and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda *_, name=name: passes.update([name]))
    recompute(model, ["*.layer.*", "*.query"])
    workload.loss(model, batch).sum().backward()
    assert len(passes) == 3 * 6
    assert set(passes.values()) == {2}
    with pytest.raises(BadInput, match="matches no module"):
        recompute(model, ["encoder.encoder.layer"])  # a list, which nobody calls


def test_a_value_of_theirs_takes_the_place_of_ours() -> None:
    training = TrainingConfig(deepspeed={"steps_per_print": 10, "zero_optimization": {"reduce_bucket_size": 1000}})
    found = settings_of(training, 2)
    assert found["steps_per_print"] == 10
    assert found["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}


@pytest.mark.parametrize(
    ("training", "parts"),
    [
        ({"deepspeed": {"optimizer": {"type": "Adam"}}}, ("optimizer is not for", "training.learning_rate")),
        ({"deepspeed": {"zero_optimization": {"stage": 1}}}, ("zero_optimization.stage", "training.zero_stage")),
        ({"deepspeed": {"bf16": {"enabled": True}}}, ("bf16", "give training.precision")),
        ({"deepspeed": {"zero_optimization": 3}}, ("zero_optimization = 3 is not a table",)),
        ({"deepspeed": "none.json"}, ("none.json: no such file", "beside the TOML")),
        ({"accumulation": 5}, ("batch_size 64 is not a multiple of ranks 1 x accumulation 5",)),
        ({"offload": "cpu", "zero_stage": 1}, ("offload 'cpu' with zero_stage 1", "zero_stage 2 or 3")),
        ({"precision": "fp16"}, ("training.precision = 'fp16'", "'bf16'")),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_key_to_give(
    tmp_path: Path, training: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(BadInput) as refused:
        load(write_toml(tmp_path, training={"batch_size": 64} | training))
    for part in parts:
        assert part in str(refused.value)


def test_a_changed_file_of_deepspeeds_is_another_recipe(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"reduce_bucket_size": 100}}')
    config = load(write_toml(tmp_path, training={"deepspeed": "ds.json"}))
    assert config.training.deepspeed == {"zero_optimization": {"reduce_bucket_size": 100}}
    (tmp_path / "ds.json").write_text("{}")
    assert load(tmp_path / "tamis.toml").training != config.training
    (tmp_path / "ds.json").write_text("{")
    with pytest.raises(BadInput, match=r"ds\.json: not JSON"):
        load(tmp_path / "tamis.toml")
