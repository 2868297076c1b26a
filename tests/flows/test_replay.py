"""What a training leaves of its steps is enough to make them again."""

from pathlib import Path

import torch

from flows.ranks.engine import OPTIMIZER
from flows.workloads.tiny import Tiny
from storage import trajectory_store
from tests.flows.test_ranks import assert_same, here, train_plan, weights


def test_the_recorded_steps_replayed_in_plain_torch_end_in_the_saved_weights(one_rank: None, tmp_path: Path) -> None:
    plan = train_plan(tmp_path, learning_rate=2e-3)
    here("train", plan)
    steps, workload = trajectory_store.read(tmp_path / "model", OPTIMIZER), Tiny()
    data = workload.points()
    rows = {point: row for row, point in enumerate(data.ids)}
    torch.manual_seed(plan.jobs[0].seed)
    model = workload.model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=plan.config.training.weight_decay)
    for batch, rate in zip(steps.point_ids, steps.rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        given = torch.utils.data.default_collate([data[rows[point]] for point in batch])
        workload.loss(model, given).mean().backward()
        if plan.config.training.clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), plan.config.training.clipping)
        optimizer.step()
    assert_same(weights(tmp_path), {name: value.numpy() for name, value in model.state_dict().items()})
