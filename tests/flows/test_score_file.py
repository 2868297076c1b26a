"""`tamis score`: a model that was trained elsewhere, scored without a cycle."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flows.config import load
from flows.errors import BadInput
from flows.estimators import COMPRESSORS
from flows.ranks.points import Points
from flows.score_file import ScoredFile, score_file
from flows.sections.scoring import CompressionKind
from flows.tables import print_scored
from influence import EKFAC, Damping, Influence, Task, select, turn_over_self_influence
from storage.errors import StorageError
from tests.flows.blobs import Blobs
from tests.flows.helpers import tamis, write_toml


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Trained without Tamis."""
    torch.manual_seed(1)
    workload = Blobs()
    model, cloud = workload.model(), workload.points()
    batch = cloud.samples, torch.tensor(cloud.labels)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        workload.loss(model, batch).mean().backward()
        optimizer.step()
    return model


@pytest.fixture
def checkpoint(model: nn.Module, tmp_path: Path) -> Path:
    save_file(model.state_dict(), tmp_path / "elsewhere.safetensors")
    return tmp_path / "elsewhere.safetensors"


def scored(folder: Path, checkpoint: Path, **scoring: Any) -> ScoredFile:
    return score_file(write_toml(folder, scoring=scoring), checkpoint, folder / "out" / "scores.parquet")


@pytest.mark.parametrize("kind", [None, "mask", "logra"])
def test_the_scores_are_those_of_the_engine_on_that_model(
    tmp_path: Path, checkpoint: Path, model: nn.Module, kind: CompressionKind | None
) -> None:
    small = {} if kind is None else {"compression": {"kind": kind, "ratio": 2}, "exact_head": False}
    done = scored(tmp_path, checkpoint, **small)
    table = pq.read_table(done.file)
    workload = Blobs()
    train, queries = workload.points(), workload.queries()
    blocks = select(model)
    compressor = None if kind is None else COMPRESSORS[kind](blocks, 2, 0)
    curvature, task = EKFAC(compressor.blocks if compressor else blocks), Task(workload.logits, workload.labels)
    with Influence(model, task, curvature, blocks, compressor=compressor) as influence:
        batch = train.samples, torch.tensor(train.labels)
        influence.fit([batch], Damping("absolute", 0.1))
        found = influence.pairs([batch], [(queries.samples, torch.tensor(queries.labels))])
    assert table["point_id"].to_pylist() == train.ids
    for column, expected in (
        ("influence", found.influence.mean(1)),
        ("classification_influence", found.classification.mean(1)),
        ("self_influence", found.self_influence),
    ):
        # float32 sums in other batches
        np.testing.assert_allclose(table[column].to_numpy(), expected.numpy(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [("mask", "ekfac"), ("logra", "ekfac")]  # the others are refused: test_config
    + [(kind, estimator) for kind in get_args(CompressionKind) for estimator in ("dual", "arnoldi")],
)
def test_compressed_scores_are_like_those_that_are_not_and_say_so(
    tmp_path: Path, checkpoint: Path, kind: str, estimator: str
) -> None:
    damping = {"estimator": estimator, "damping": {"kind": "absolute", "value": 0.1}, "exact_head": False}
    whole = pq.read_table(scored(tmp_path / "whole", checkpoint, **damping).file)
    done = scored(tmp_path / "small", checkpoint, **damping, compression={"kind": kind, "ratio": 1.5})
    table = pq.read_table(done.file)
    assert json.loads(table.schema.metadata[b"tamis.estimator"]) == done.estimator == f"{estimator}, {kind} 1.5 x"
    agreement = np.corrcoef(table["self_influence"].to_numpy(), whole["self_influence"].to_numpy())[0, 1]
    assert 0.5 < agreement < 1 - 1e-6


def test_masks_of_points_give_a_signal_of_their_own(tmp_path: Path, checkpoint: Path, model: nn.Module) -> None:
    file = write_toml(tmp_path, training={"turn_over": ["hidden"]})
    table = pq.read_table(score_file(file, checkpoint, tmp_path / "out" / "scores.parquet").file)
    points, task = Points("train", Blobs().points(), Blobs()), Task(Blobs().logits, Blobs().labels)
    batch = points.take(torch.arange(len(points)))
    trained, seed = deepcopy(model).eval(), load(file).training.seed
    expected = turn_over_self_influence(trained, task, ["hidden"], points.keys, [batch], seed)
    np.testing.assert_allclose(table["signal_turn_over"].to_numpy(), expected.numpy(), rtol=1e-5, atol=1e-7)


def test_the_file_says_how_it_was_made_and_what_it_has_not(tmp_path: Path, checkpoint: Path) -> None:
    done = scored(tmp_path, checkpoint, blocks=["head"])
    table = pq.read_table(done.file)
    made = {key.decode().removeprefix("tamis."): json.loads(value) for key, value in table.schema.metadata.items()}
    assert made["unit"] == "nats"
    assert made["sign"].startswith("positive = helpful")
    assert (made["estimator"], made["blocks"], made["damping"]) == ("ekfac", ["head"], {"head": 0.1})
    assert made["selection"]["parameters"] == 27
    assert made["probe"]["parameters"] == 51
    assert {"relative_theta", "relative_l", "relative_self", "relative_share"} <= set(table.column_names)
    assert {"signal_el2n", "signal_grand", "signal_confidence", "signal_entropy"} <= set(table.column_names)
    assert not {"cycle", "suspicion", "harmful_q", "signal_influence_head"} & set(table.column_names)
    assert [what.split(" ")[0] for what in done.left_out] == ["suspicion", "the"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere.safetensors", "out", "tamis.toml"]


def test_relative_influence_of_a_point_that_moves_nothing_is_null(tmp_path: Path, checkpoint: Path) -> None:
    toml = write_toml(tmp_path, options={"fault": "far point"}, scoring={"probe": 0})  # its p rounds to 1
    rows = pq.read_table(score_file(toml, checkpoint, tmp_path / "scores.parquet").file).to_pylist()
    for row in rows:
        null = row["point_id"] == 20
        assert [row[f"relative_{mode}"] is None for mode in ("theta", "l", "self")] == [null] * 3
        assert row["relative_share"] is not None
        assert (row["signal_grand"] == 0) is null


def test_the_head_is_scored_exactly_where_its_damping_is_known(tmp_path: Path, checkpoint: Path) -> None:
    known = {"kind": "absolute", "value": 0.2}
    done = scored(tmp_path, checkpoint, head_damping=known, probe=0)
    assert "signal_influence_head" in pq.read_table(done.file).column_names
    assert len(done.left_out) == 1
    assert done.probe == ""


def test_weights_in_half_precision_are_taken(tmp_path: Path, model: nn.Module) -> None:
    half = {name: value.half() for name, value in model.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    assert scored(tmp_path, tmp_path / "half.safetensors", probe=0).points == 120


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("none", None, ("no such file",)),
        ("text", b"not a checkpoint at all", ("not a safetensors file",)),
        ("other", {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, ("of another model than the workload's",)),
        ("wide", "wide", ("of another model", "head.weight")),
        ("broken", "broken", ("head.bias is not finite",)),
    ],
)
def test_what_is_not_this_model_is_refused_in_one_line(
    tmp_path: Path, model: nn.Module, name: str, content: Any, parts: tuple[str, ...]
) -> None:
    file = tmp_path / f"{name}.safetensors"
    state = dict(model.state_dict())
    if content == "wide":
        content = state | {"head.weight": torch.zeros(4, 8), "head.bias": torch.zeros(4)}
    if content == "broken":
        content = state | {"head.bias": torch.tensor([0.0, torch.nan, 0.0])}
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        save_file(content, file)
    with pytest.raises(BadInput, match=r"^[^\n]+$") as refused:
        scored(tmp_path, file)
    for part in (file.name, *parts):
        assert part in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scoring", [{"estimator": "dense"}, {"damping": {"kind": "horizon"}}])
def test_a_damping_by_the_horizon_is_refused_before_anything_is_computed(
    tmp_path: Path, checkpoint: Path, scoring: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=r"trained elsewhere: give scoring.damping = \{ kind"):
        scored(tmp_path, checkpoint, **scoring)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_file_and_leaves_with_2_where_it_cannot(tmp_path: Path, checkpoint: Path) -> None:
    write_toml(tmp_path, scoring={"probe": 0})
    done = tamis("score", "--checkpoint", checkpoint.name, "--out", "s.parquet", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["points"] == 120
    assert pq.read_metadata(tmp_path / "s.parquet").num_rows == 120
    refused = tamis("score", "--checkpoint", "tamis.toml", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("tamis: checkpoint tamis.toml: not a safetensors file")
    assert refused.stderr.count("\n") == 1


def test_a_person_reads_the_blocks_the_damping_the_verdict_and_what_is_left_out(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_scored(scored(tmp_path, checkpoint), as_json=False)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("scores.parquet: 120 points scored on 60 queries")
    assert [line.split(":")[0] for line in said[1:]] == ["blocks", "estimator", "probe", "left out", "left out"]
    assert "damping 0.1" in said[2]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        score_file(write_toml(tmp_path, scoring={"probe": 0}), checkpoint, tmp_path)
