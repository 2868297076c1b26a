"""Where in a text its influence lies: on real scores, summed over checkpoints, and into the report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from flows.plans import PreviewPlan, ScorePlan
from flows.ranks.positions import _split, blocks_in
from flows.relabeling import write_labels
from flows.report_points import TOKENS, Samples
from flows.training import write_ids
from flows.workload import load_workload
from storage import score_store
from storage.points import Manifest
from tests.flows.helpers import launch, turn, write_toml
from tests.flows.small_texts import Texts
from tests.flows.test_ranks import here, score_plan, train_plan

ENTRY = f"{Path(__file__).with_name('small_texts.py')}:Texts"
SHOWN = ("line 7", "line 0", "line 4")  # the last is out of training
Row = dict[str, Any]


def preview_plan(folder: Path, scored: ScorePlan) -> PreviewPlan:
    points = load_workload(scored.config).points()
    manifest = Manifest.build(points.ids, map(str, points.ids), map(str, points.ids), points.labels)
    return PreviewPlan(
        config=scored.config,
        logs=scored.logs,
        train_digest=scored.train_digest,
        checkpoint=scored.checkpoints[-1],
        checkpoint_digest="d",
        horizon=scored.horizon,
        removed=scored.removed,
        relabeled=write_labels(folder / "now.parquet", {}, manifest),
        then_removed=write_ids(folder / "then.parquet", ["line 0", "line 4", "line 7", "line 50"], manifest),
        then_relabeled=write_labels(folder / "labels.parquet", {}, manifest),
        scores=scored.folder,
        inputs_digest="i",
        file=folder / "preview.parquet",
        checkpoints=scored.checkpoints,
        shown=SHOWN,
        positions=folder / "positions.parquet",
    )


def told(plan: PreviewPlan) -> dict[str, Row]:
    assert plan.positions is not None
    return {row["point_id"]: row for row in pq.read_table(plan.positions).to_pylist()}


def influence(plan: PreviewPlan) -> dict[str, float]:
    table = score_store.read(plan.scores, ["influence"])
    return dict(zip(table["point_id"].to_pylist(), table["influence"].to_pylist()))


def check(plan: PreviewPlan) -> None:
    """Assert that positions and rest of each point add up to its influence in the scores, and where it may lie."""
    found, scores = told(plan), influence(plan)
    assert list(found) == list(SHOWN)
    for point, row in found.items():
        assert len(row["positions"]) == len(Texts().tokens(point))
        # the directions are float32, and so are gradients
        assert sum(row["positions"]) + row["rest"] == pytest.approx(scores[point], rel=1e-4, abs=1e-7)
        assert row["rest"] != 0, "the head sees the mean of the words"
        assert all(row["positions"])


def test_what_is_told_by_position_adds_up_to_the_influence_in_the_scores(one_rank: None, tmp_path: Path) -> None:
    here("train", train_plan(tmp_path / "trained", ENTRY))
    scored = score_plan(tmp_path, tmp_path / "trained", ENTRY, blocks={"names": ["*"]}, probe=0)
    assert len(scored.checkpoints) == 2
    here("score", scored)
    plan = preview_plan(tmp_path, scored)
    here("preview", plan)
    check(plan)
    assert plan.positions is not None
    # a reviewer strikes points out: the file of the first proposal stays, though what it was made from is gone
    shutil.rmtree(scored.folder / "unfinished")
    before = plan.positions.read_bytes()
    here("preview", plan.model_copy(update={"shown": SHOWN[:1]}))
    assert plan.positions.read_bytes() == before
    plan.positions.unlink()
    here("preview", plan)
    assert not plan.positions.exists()


class Copies(Texts):
    """Texts whose words are told by the table itself, a language model's way."""

    def logits(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0])

    def targets(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return batch[0]

    labels = None  # type: ignore[assignment]


def test_the_influence_of_a_table_that_is_also_the_output_layer_is_rest() -> None:
    model = nn.Sequential(nn.Embedding(30, 4), nn.Linear(4, 4), nn.Linear(4, 30, bias=False))
    model[2].weight = model[0].weight
    assert [block.weight_shape for block in blocks_in(model, {"0", "1"})] == [(30, 4), (4, 5)]
    along = {"0": torch.randn(30, 4), "1": torch.zeros(4, 5)}
    words = Texts().points()[0][0][None]
    [found] = _split(model, Copies(), along, iter([(words, words)]), [words.shape[1]])
    loss = nn.functional.cross_entropy(model(words)[0], words[0])
    [slope] = torch.autograd.grad(loss, model[0].weight)
    assert not found.positions.any()
    assert float(found.rest) == pytest.approx(float((slope * along["0"]).sum()), rel=1e-4)


@pytest.mark.slow
def test_ranks_that_split_the_blocks_tell_the_same(one_rank: None, tmp_path: Path) -> None:
    here("train", train_plan(tmp_path / "trained", ENTRY))
    how: dict[str, Any] = {"blocks": {"names": ["*"]}, "probe": 0, "ranks": 2, "placement": "split"}
    scored = score_plan(tmp_path, tmp_path / "trained", ENTRY, **how)
    launch("score", scored, 2)
    plan = preview_plan(tmp_path, scored)
    launch("preview", plan, 2)
    check(plan)


@pytest.mark.parametrize("how", [{"compression": {"kind": "mask", "ratio": 2.0}, "exact_head": False}, {}])
def test_nothing_is_kept_where_nothing_can_be_told(one_rank: None, tmp_path: Path, how: dict[str, Any]) -> None:
    entry = ENTRY if how else "tiny"  # images have no tokens
    here("train", train_plan(tmp_path / "trained", entry))
    scored = score_plan(tmp_path, tmp_path / "trained", entry, probe=0, **how)
    here("score", scored)
    assert not list(tmp_path.rglob("directions"))


def test_the_report_is_given_the_words_and_what_is_beyond_those_shown_is_rest() -> None:
    class Long(Texts):
        def tokens(self, point_id: str) -> list[str]:
            return ["w" * 80, "\ud800", *["x"] * TOKENS]

    samples = Samples(Long(), {}, {"line 7": ([0.5, -0.25, *[0.001] * TOKENS], 0.125)})
    found = samples.tokens("line 7")
    assert found is not None
    assert list(found.words[:3]) == [("w" * 50, 0.5), ("?", -0.25), ("x", 0.001)]
    assert len(found.words) == TOKENS
    assert found.rest == pytest.approx(0.127)
    assert samples.tokens("line 8") is None


@pytest.mark.slow
def test_a_cycle_on_texts_shows_where_their_influence_lies(tmp_path: Path) -> None:
    file = write_toml(tmp_path, ENTRY, scoring={"probe": 0, "blocks": {"names": ["*"]}})
    summary = turn(file, dry_run=True)
    html = summary.report.read_text()
    data = json.loads(html.split('type="application/json">')[1].split("</script>")[0])
    [column] = [one["values"] for one in data["columns"] if one["name"] == "influence"]
    assert summary.proposed
    for detail, total in zip(data["details"], column, strict=True):
        assert sum(value for _, value in detail["tokens"]) + detail["rest"] == pytest.approx(total, rel=0.01)
        assert " ".join(word for word, _ in detail["tokens"]) == detail["text"]
