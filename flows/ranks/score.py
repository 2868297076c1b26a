"""The program each scoring rank runs: influence and suspicion of every point, as one Parquet shard per chunk.

Train points are dealt to the ranks in chunks and never move. Curvature is summed over the ranks once per pass; queries
are solved in parts, each by one rank, and sent to the others block by block; a few numbers per point are exchanged for
the false-discovery rates. A chunk is computed in the same way on any rank, and every rank computes on one thread: the
number of ranks changes only the order of float64 sums. What is dear is kept as soon as it is known, the answers of each
fold model, the curvatures, each chunk: after a kill any number of ranks goes on from there. The holdout set is not read
here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from flows.asking import at_a_time, has_classes
from flows.dataset import check_unchanged
from flows.estimators import named
from flows.plans import ScorePlan, read_plan
from flows.ranks.attribution import QUERY_BATCH, Attribution, Setting
from flows.ranks.blocks import measure_energies
from flows.ranks.chunks import PointScores, gather, relative_columns, score_chunks
from flows.ranks.device import CPU
from flows.ranks.engine import connect
from flows.ranks.kept import Kept, packed
from flows.ranks.pairs import score_trajectory
from flows.ranks.partitioned import in_step
from flows.ranks.points import Points
from flows.ranks.positions import has_positions, keep_direction
from flows.ranks.precision import in_precision
from flows.ranks.probe import probe
from flows.ranks.rank import Rank, rank_process
from flows.ranks.shards import shard_table
from flows.ranks.suspects import Suspects, suspects, suspicion_columns
from flows.ranks.weights import load_weights
from flows.relabeling import read_labels
from flows.trust import Probe
from flows.workload import Sample, load_workload
from influence import ChunkGrid
from influence.devices import on
from influence.discovery import Influences, Trusted, harmful, memorized, trusted
from influence.redundancy import redundancy
from storage import checkpoints, score_store
from storage.query_scores import write_queries
from storage.score_store import ScoreMetadata, write_chunk


class Scoring:
    """The scoring of one cycle on one rank."""

    def __init__(self, plan: ScorePlan, rank: Rank) -> None:
        self._plan, self._rank = plan, rank
        self._workload = load_workload(plan.config)
        removed = frozenset(pq.read_table(plan.removed)["point_id"].to_pylist())
        points = self._workload.points()
        some = points if plan.sample is None else Sample(points, plan.sample)
        self._points = Points("train", some, self._workload, removed, read_labels(plan.relabeled), rank.device)
        check_unchanged(self._points.manifest, plan.train_digest)
        self._queries = Points("query", self._workload.queries(), self._workload, device=rank.device)
        self._grid = ChunkGrid(len(self._points), plan.config.scoring.chunk)
        self._keep = Kept(score_store.parts(plan.folder, plan.inputs_digest))

    def run(self) -> None:
        """Score every point and write this rank's shards."""
        found = None
        if has_classes(self._workload):
            found = suspects(self._plan, self._workload, self._points, self._queries, self._rank, self._keep)
        setting = self._setting()
        with ExitStack() as sources:
            count = len(self._plan.checkpoints)
            attributions = [self._attribution(number, setting, sources) for number in range(count)]
            last = attributions[-1]
            probed = self._probe(setting, last) if setting.config.scoring.probe else None
            reference = self._reference(attributions)
            chunks = score_chunks(attributions, self._queries, self._grid, self._rank, self._keep)
            scores = gather(chunks, self._points, self._grid, self._rank)
            metadata = self._metadata(last, found, probed)
            cached = sum(one.cache.held for one in attributions)
        originals, blocks = self._points.originals(), [block.name for block in last.blocks]
        relative, whole = relative_columns(scores, self._points), self._policies(scores, reference, found, originals)
        for done, (chunk, columns) in enumerate(chunks.items()):
            self._rank.progress("writing shards", done, len(chunks))
            rows = self._grid.rows(chunk)
            table = shard_table(self._points, self._queries, blocks, rows, columns, originals, relative, whole)
            cycle = pa.array([self._plan.cycle] * len(table), pa.int32())
            write_chunk(self._plan.folder, self._rank.index, chunk, table.add_column(1, "cycle", cycle), metadata)
        self._rank.progress("writing shards", len(chunks), len(chunks))
        self._rank.report(
            found=self._keep.found,
            data_bytes=self._points.batches.held,
            cache_bytes=cached,
            column_bytes=sum(tensor.nbytes for columns in chunks.values() for tensor in packed(columns).values()),
        )

    def _setting(self) -> Setting:
        plan, energies = self._plan, dict[str, float]()
        if plan.config.scoring.placement != "partitioned":  # they are squared gradients of every parameter
            model = self._model(plan.checkpoints[-1])
            energies = measure_energies(model, self._workload, self._points, self._rank)
        return Setting(
            config=plan.config,
            energies=energies,
            horizon=plan.horizon,
            checkpoints=len(plan.checkpoints),
            folder=plan.folder.parent,
        )

    def _model(self, checkpoint: Path) -> nn.Module:
        model = self._workload.model().to(self._rank.device)
        load_weights(model, checkpoint)
        return model

    def _attribution(self, number: int, setting: Setting, sources: ExitStack) -> Attribution:
        checkpoint = self._plan.checkpoints[number]
        model = in_precision(self._model(checkpoint), setting.config.scoring.precision)
        attribution = Attribution(model, self._workload, setting, self._points, self._rank, number)
        sources.enter_context(attribution)
        attribution.fit(f"curvature, {checkpoint.name}", self._keep, checkpoints.verify(checkpoint).digest)
        attribution.prepare(self._queries)
        if has_positions(setting.config, self._workload):
            keep_direction(attribution, checkpoint.name, self._queries, int(self._points.in_train.sum()), self._keep)
        return attribution

    def _probe(self, setting: Setting, last: Attribution) -> Probe | None:
        again = self._model(self._plan.checkpoints[-1])
        return probe(setting, self._workload, again, last, self._points, self._queries, self._rank)

    def _reference(self, attributions: Sequence[Attribution]) -> Trusted:
        """The queries scored as if they were train points."""
        m = len(self._queries)
        pairs = torch.zeros(m, m, dtype=torch.float64)
        own = torch.zeros(m, dtype=torch.float64)
        loss = torch.zeros(m, dtype=torch.float64)
        predicted = torch.zeros(m, dtype=torch.int64)
        parts = torch.arange(m).split(at_a_time(self._workload, QUERY_BATCH))
        last = attributions[-1]
        mine = last.reads(len(parts))
        for done, (part, counts) in enumerate(in_step(mine, self._rank, last.together)):
            self._rank.progress("scoring the queries", done, len(mine))
            found = [one.score_points(self._queries, parts[part]) for one in attributions]
            scores = score_trajectory(found)
            if counts and last.owns(part):
                pairs[parts[part]], own[parts[part]] = scores.blocks.influence, scores.blocks.self_influence
                cheap = on(CPU, scores.last.signals)
                loss[parts[part]] = cheap.loss.double()
                if cheap.predicted is not None:
                    predicted[parts[part]] = cheap.predicted
        for column in (pairs, own, loss, predicted):
            self._rank.sum(column)
        if not has_classes(self._workload):
            predicted.fill_(-1)
        if self._rank.index == 0:
            known = {"label": self._queries.labels, "predicted": predicted, "loss": loss}
            columns = {name: column.numpy() for name, column in known.items()}
            write_queries(self._plan.folder, {"query_id": list(map(str, self._queries.ids)), **columns})
        return trusted(pairs, own)

    def _policies(
        self, scores: PointScores, reference: Trusted, found: Suspects | None, originals: Tensor
    ) -> dict[str, Tensor]:
        """What the policies read, by column, with the signals of the labels."""
        influences = Influences(scores.influence, scores.influence_se, scores.own.self_influence)
        in_train, pruning = self._points.in_train, self._plan.config.pruning
        cells = [self._points.labels, self._points.groups]
        conformity = None if found is None else found.conformity
        harm = harmful(influences, reference, in_train, pruning.harmful_q, conformity)
        suspected = suspicion_columns(found, in_train, pruning.mislabeled_q)
        wrong = suspected.pop("mislabeled_q")
        return {
            **suspected,
            "harmful_p": harm.evidence,
            "harmful_q": harm.q_value,
            "mislabeled_q": wrong,
            "memorized_q": memorized(influences, in_train, pruning.memorized_q).q_value,
            "redundancy": redundancy(scores.own.self_influence, cells, in_train, self._points.keys, originals),
        }

    def _metadata(self, last: Attribution, found: Suspects | None, probed: Probe | None) -> ScoreMetadata:
        plan = self._plan
        return ScoreMetadata(
            cycle=plan.cycle,
            estimator=f"{named(plan.config)}, summed over {len(plan.checkpoints)} checkpoints",
            blocks=[block.name for block in last.blocks],
            damping={name: found.damping for name, found in last.diagnostics.items()},
            checkpoint_digest=plan.checkpoint_digest,
            inputs_digest=plan.inputs_digest,
            extra={
                "suspicion": None if found is None else "two-round stack",
                "dropped_while_learning": plan.dropped,
                "noise_rate": None if found is None else found.suspicion.noise_rate,
                "selection": asdict(last.summary),
                "probe": None if probed is None else asdict(probed),
                "diagnostics": last.describe(),
            },
        )


def main() -> None:
    """Run the plan named on the command line."""
    plan = read_plan(ScorePlan, Path(sys.argv[1]))
    needed = connect if plan.config.scoring.placement == "partitioned" else None
    with rank_process("score", plan.logs, plan.config.launch, needed) as rank:
        torch.set_num_threads(1)
        Scoring(plan, rank).run()


if __name__ == "__main__":
    main()
