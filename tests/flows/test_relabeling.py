"""A relabelled point is trained on and scored as if the data had always given it that label."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from flows.agents import Launch
from flows.config import load
from flows.dataset import read_sets
from flows.errors import BadInput
from flows.plans import Job, ScorePlan, TrainPlan, write_plan
from flows.ranks.points import Points
from flows.relabeling import GIVEN, LabelWriter, check_relabeling, read_labels, write_labels
from flows.training import write_ids
from flows.workload import Batches, load_workload
from influence.errors import InfluenceError
from storage import checkpoints, score_store
from storage.points import Manifest, PointId
from tests.flows.blobs import Blobs, Cloud
from tests.flows.helpers import BLOBS, run_here, write_toml

STEPS = 12
TRUE: Mapping[PointId, int] = dict(enumerate(Cloud(0, 120).labels[:12]))


def ready(folder: Path, program: str, plan: TrainPlan | ScorePlan) -> None:
    run_here(Launch(program, write_plan(plan, folder / f"{program}.json"), 1, plan.logs, 60.0), lambda _: None)


def run(folder: Path, wrong: int, labels: Mapping[PointId, int]) -> tuple[Path, Path]:
    """Train and score the blobs, some of whose labels are wrong and some overridden: checkpoint and scores."""
    training = {"batch_size": 32, "turn_over": ["hidden"]}
    config = load(write_toml(folder, BLOBS, {"wrong": wrong}, training=training, scoring={"chunk": 40, "probe": 10}))
    sets = read_sets(load_workload(config))
    relabeled = write_labels(folder / "relabeled.parquet", labels, sets.train)
    job = Job(role="baseline", seed=1, steps=STEPS, planned=STEPS, folder=folder / "model", save_at=(STEPS,))
    job = job.model_copy(update={"relabeled": relabeled})
    given: dict[str, Any] = {"config": config, "logs": folder / "logs", "train_digest": sets.digests["train"]}
    ready(folder, "train", TrainPlan(**given, jobs=(job,)))
    plan = ScorePlan(
        **given,
        cycle=1,
        checkpoints=job.saved,
        removed=write_ids(folder / "removed.parquet", [30], sets.train),
        relabeled=relabeled,
        folder=folder / "scores",
        checkpoint_digest="d",
        inputs_digest="i",
        horizon=0.1,
    )
    ready(folder, "score", plan)
    score_store.finish(plan.folder, 3)
    return job.last, plan.folder


def test_overridden_labels_give_the_model_and_the_scores_of_data_that_were_labelled_so(
    one_rank: None, tmp_path: Path
) -> None:
    """To the last bit: the order of the points, the masks and the folds depend on their ids and number alone."""
    (right, expected), (model, scores) = run(tmp_path / "right", 0, {}), run(tmp_path / "mended", 12, TRUE)
    wrong, _ = run(tmp_path / "wrong", 12, {})
    theirs, ours, without = map(checkpoints.read_tensors, (right, model, wrong))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert not all(np.array_equal(without[name], theirs[name]) for name in theirs)
    one, other = score_store.read(expected), score_store.read(scores)
    assert other["label"].to_pylist()[:12] == list(TRUE.values())
    assert other.equals(one)


class Named:
    """A batch of named leaves, whose labels are int32."""

    def labels(self, batch: Any) -> Tensor:
        return batch["y"].long()


class Rows(Cloud):
    """Samples with names and whatever else is given, by row."""

    def __init__(self, **others: Tensor) -> None:
        super().__init__(0, 20)
        self.others = others

    def __getitem__(self, index: int) -> Any:
        more = {name: values[index] for name, values in self.others.items()}
        return {"x": self.samples[index], "y": torch.tensor(self.labels[index], dtype=torch.int32)} | more


def writer(workload: Any, points: Any) -> LabelWriter:
    return LabelWriter(workload, Batches(points, default_collate), len(points))


def test_the_labels_of_a_batch_are_found_and_nothing_else_is_touched() -> None:
    points = Rows(row=torch.arange(20), flag=torch.zeros(20, dtype=torch.bool))
    batch = Batches(points, default_collate).take(torch.arange(4))
    before = batch["y"].clone()
    written = writer(Named(), points).override(batch, torch.tensor([2, GIVEN, 1, GIVEN]))
    assert written["y"].tolist() == [2, before[1], 1, before[3]]
    assert written["y"].dtype == torch.int32
    assert all(written[name] is batch[name] for name in ("x", "row", "flag"))
    assert batch["y"].equal(before), "what a set holds in memory is not written to"


@pytest.mark.parametrize(
    ("workload", "points", "line"),
    [
        ("ambiguous", Rows(again=torch.tensor(Cloud(0, 20).labels)), "2 integer tensors of a batch are its labels"),
        ("hidden", Cloud(0, 20), "no integer tensors of a batch are its labels"),
    ],
)
def test_labels_that_are_not_found_are_refused_with_the_remedy(workload: str, points: Any, line: str) -> None:
    task: Any = Named() if workload == "ambiguous" else Blobs()
    if workload == "hidden":
        task.labels = lambda batch: 2 - batch[1]
    with pytest.raises(BadInput, match=rf"{line}.*with_labels\(batch, labels\) -> batch"):
        writer(task, points)
    task.with_labels = lambda batch, labels: (
        {**batch, "y": labels, "again": labels} if workload == "ambiguous" else (batch[0], 2 - labels)
    )
    made = writer(task, points).override(Batches(points, default_collate).take(torch.arange(2)), torch.tensor([1, 0]))
    assert task.labels(made).tolist() == [1, 0]


def test_a_method_that_does_not_put_the_labels_in_is_refused() -> None:
    task: Any = Blobs()
    task.with_labels = lambda batch, labels: batch
    with pytest.raises(BadInput, match="of which labels\\(batch\\) are not these labels"):
        writer(task, Cloud(0, 20))


def test_a_loss_that_does_not_follow_the_labels_is_refused() -> None:
    task: Any = Blobs()
    check_relabeling(task, task.model(), task.points())
    given = {tuple(sample.tolist()): label for sample, label in (Cloud(0, 120, 12)[row] for row in range(120))}
    loss = task.loss

    def stubborn(model: Any, batch: Any) -> Tensor:
        return loss(model, (batch[0], torch.tensor([given[tuple(sample.tolist())] for sample in batch[0]])))

    task.loss = stubborn
    with pytest.raises(InfluenceError, match="not the cross-entropy"):
        check_relabeling(task, task.model(), task.points())


def test_ids_in_any_order_of_rows_get_their_own_labels(tmp_path: Path) -> None:
    points = Cloud(0, 20)
    points.ids = [f"p{row}" for row in range(20)][::-1]
    manifest = Manifest.build(points.ids, map(str, points.ids), map(str, points.ids), points.labels)
    path = write_labels(tmp_path / "l.parquet", {"p3": 2, "p17": 0, "gone": 1}, manifest)
    found = Points("train", points, Blobs(), relabeled=read_labels(path))
    for point, label in (("p3", 2), ("p17", 0)):
        place = found.ids.index(point)
        assert int(found.labels[place]) == label
        samples, labels = found.take(torch.tensor([place, 0]))
        assert labels[0] == label
        assert samples[0].equal(points.samples[points.ids.index(point)])
    assert read_labels(None) == {}
