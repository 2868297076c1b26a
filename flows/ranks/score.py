"""The program each scoring rank runs: influence and suspicion of every point, as one Parquet shard per chunk.

Train points are dealt to the ranks in chunks and never move. Curvature is summed over the ranks once per pass; queries
are preconditioned on every rank; a few numbers per point are exchanged for the false-discovery rates. A chunk is
computed in the same way on any rank, and every rank computes on one thread: the number of ranks changes only the order
of float64 sums. The holdout set is not read here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from flows.dataset import check_unchanged
from flows.plans import ScorePlan, read_plan
from flows.ranks.attribution import QUERY_BATCH, Attribution, score_trajectory
from flows.ranks.points import Points
from flows.ranks.rank import Rank, rank_process
from flows.ranks.shards import ChunkColumns, shard_table
from flows.ranks.suspects import Suspects, suspects
from flows.ranks.weights import load_weights
from flows.workload import load_workload
from influence import ChunkGrid, Own, Share, cheap_signals, relative_influence, summarize_chunk
from influence.discovery import Influences, Trusted, harmful, mislabeled, trusted
from storage.score_store import ScoreMetadata, write_chunk


class Scoring:
    """The scoring of one cycle on one rank."""

    def __init__(self, plan: ScorePlan, rank: Rank) -> None:
        self._plan, self._rank = plan, rank
        self._workload = load_workload(plan.config)
        removed = frozenset(pq.read_table(plan.removed)["point_id"].to_pylist())
        self._points = Points("train", self._workload.points(), self._workload, removed)
        check_unchanged(self._points.manifest, plan.train_digest)
        self._queries = Points("query", self._workload.queries(), self._workload)
        self._share = Share(rank.index, rank.world)
        self._grid = ChunkGrid(len(self._points), plan.config.scoring.chunk)

    def run(self) -> None:
        """Score every point and write this rank's shards."""
        found = suspects(self._plan, self._workload, self._points, self._rank)
        with ExitStack() as sources:
            attributions = [self._attribution(path, sources) for path in self._plan.checkpoints]
            reference = self._reference(attributions)
            chunks = self._chunks(attributions, found.classes)
            whole = self._whole(chunks, reference, found)
            metadata = self._metadata(attributions[-1], found)
        for done, (chunk, columns) in enumerate(chunks.items(), start=1):
            table = shard_table(self._plan.cycle, self._points, self._queries, self._grid.rows(chunk), columns, whole)
            write_chunk(self._plan.folder, self._rank.index, chunk, table, metadata)
            self._rank.progress("writing shards", done, len(chunks))

    def _attribution(self, checkpoint: Path, sources: ExitStack) -> Attribution:
        model = self._workload.model()
        load_weights(model, checkpoint)
        attribution = Attribution(model, self._workload, self._plan, self._points, self._share)
        sources.enter_context(attribution)
        attribution.fit(self._rank, f"curvature, {checkpoint.name}")
        attribution.prepare(self._queries)
        return attribution

    def _reference(self, attributions: Sequence[Attribution]) -> Trusted:
        """The queries scored as if they were train points."""
        m = len(self._queries)
        pairs = torch.zeros(m, m, dtype=torch.float64)
        own = torch.zeros(m, dtype=torch.float64)
        parts = torch.arange(m).split(QUERY_BATCH)
        for part in self._share.of(len(parts)):
            found = [one.score_queries(self._queries, parts[part]) for one in attributions]
            scores = score_trajectory(found).blocks
            pairs[parts[part]], own[parts[part]] = scores.influence, scores.self_influence
        self._rank.sum(pairs)
        self._rank.sum(own)
        return trusted(pairs, own)

    def _chunks(self, attributions: Sequence[Attribution], classes: int) -> dict[int, ChunkColumns]:
        mine = self._share.of(len(self._grid))
        chunks = {}
        for done, chunk in enumerate(mine, start=1):
            pairs = score_trajectory([one.score_chunk(chunk) for one in attributions])
            attributions[-1].check_losses(chunk, pairs.last)
            chunks[chunk] = ChunkColumns(
                scores=summarize_chunk(pairs.blocks, self._queries.labels, classes),
                head=None if pairs.head is None else summarize_chunk(pairs.head, self._queries.labels, classes),
                cheap=cheap_signals(pairs.last.logits, pairs.last.labels),
            )
            self._rank.progress("scoring", done, len(mine))
        return chunks

    def _whole(self, chunks: dict[int, ChunkColumns], reference: Trusted, found: Suspects) -> dict[str, Tensor]:
        """Columns that need all points: exchanged between the ranks, one number per point."""
        n = len(self._points)
        gathered = torch.zeros(4, n, dtype=torch.float64)
        for chunk, columns in chunks.items():
            scores = columns.scores
            places = torch.as_tensor(self._grid.rows(chunk))
            step = scores.own.squared_step
            assert step is not None  # pairs are scored with it
            gathered[:, places] = torch.stack([scores.influence, scores.influence_se, scores.own.self_influence, step])
        self._rank.sum(gathered)
        influences = Influences(*gathered[:3])
        relative = relative_influence(gathered[0], Own(gathered[2], gathered[3]), int(self._points.in_train.sum()))
        in_train, q = self._points.in_train, self._plan.config.pruning.q
        harm = harmful(influences, reference, in_train, q)
        wrong = mislabeled(found.suspicion.posterior, in_train, q)
        return {
            "relative_theta": relative.theta,
            "relative_l": relative.l,
            "relative_self": relative.own,
            "relative_share": relative.share,
            "signal_out_of_fold_loss": found.out_of_fold_loss,
            "signal_knn": found.disagreement,
            "suspicion": found.suspicion.score,
            "posterior": found.suspicion.posterior,
            "suggested_label": found.suspicion.suggested_label,
            "harmful_p": harm.evidence,
            "harmful_q": harm.q_value,
            "mislabeled_q": wrong.q_value,
        }

    def _metadata(self, last: Attribution, found: Suspects) -> ScoreMetadata:
        plan = self._plan
        return ScoreMetadata(
            cycle=plan.cycle,
            estimator=f"{plan.config.scoring.estimator}, summed over {len(plan.checkpoints)} checkpoints",
            blocks=[block.name for block in last.blocks],
            damping={name: found.damping for name, found in last.curvature.diagnostics().items()},
            checkpoint_digest=plan.checkpoint_digest,
            inputs_digest=plan.inputs_digest,
            extra={
                "suspicion": "two-round stack",
                "noise_rate": found.suspicion.noise_rate,
                "diagnostics": last.describe(),
            },
        )


def main() -> None:
    """Run the plan named on the command line."""
    plan = read_plan(ScorePlan, Path(sys.argv[1]))
    with rank_process("score", plan.logs) as rank:
        torch.set_num_threads(1)
        Scoring(plan, rank).run()


if __name__ == "__main__":
    main()
