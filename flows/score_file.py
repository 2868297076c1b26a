"""`tamis score`: influence of a workload's train points on a model that was trained elsewhere; no cycle, no ledger.

Estimator, blocks and damping are those of the tamis.toml. All train points count as trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
from torch import nn

from flows.check import require
from flows.config import Config, load
from flows.errors import BadInput
from flows.estimators import damping_of, named
from flows.launch import Progress
from flows.progress import progress_shown
from flows.ranks.attribution import Attribution, Setting
from flows.ranks.blocks import measure_energies
from flows.ranks.chunks import gather, relative_columns, score_chunks
from flows.ranks.device import device_of
from flows.ranks.points import Points
from flows.ranks.precision import in_precision
from flows.ranks.probe import probe
from flows.ranks.rank import Alone
from flows.ranks.shards import shard_table
from flows.ranks.weights import load_file
from flows.trust import Probe, described
from flows.workload import Workload
from influence import ChunkGrid
from storage.files import JSON, sha256_file
from storage.score_store import write_file

SUSPICION = "suspicion and the policies (they need models trained without each point: `tamis run`)"
HEAD = "the signals of the head (scoring.head_damping is 'horizon', which needs the length of the training)"


@dataclass(frozen=True)
class ScoredFile:
    """What was written.

    Attributes:
        damping: By block.
        probe: The verdict on the blocks; empty where none was wanted.
        left_out: What a score row of a cycle has and this file has not, each with the reason.
    """

    file: Path
    points: int
    queries: int
    estimator: str
    blocks: str
    damping: Mapping[str, float]
    probe: str
    left_out: tuple[str, ...]


def score_file(file: Path, checkpoint: Path, out: Path) -> ScoredFile:
    """Score the train points of a tamis.toml with the model in a safetensors file.

    Args:
        file: The tamis.toml.
        checkpoint: The parameters and buffers of the workload's model.
        out: The Parquet file to write.

    Raises:
        BadInput: The checkpoint is of another model, the damping needs a training, or the workload is not in order.
    """
    config = load(file)
    if config.scoring.placement != "replicated":
        raise BadInput(f"{file}: scoring.placement = {config.scoring.placement!r}: one process takes 'replicated'")
    damping_of(config, config.scoring.estimator, config.scoring.damping, None)  # before anything is computed
    workload = require(config)
    device = device_of(config.launch, 0)
    model, again = (_loaded(workload, checkpoint).to(device) for _ in range(2))
    folder = out.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    points = Points("train", workload.points(), workload, device=device)
    queries = Points("query", workload.queries(), workload, device=device)
    with progress_shown() as show:
        place = Alone(lambda phase, done, total: show(Progress(phase, done, total)), device=device)
        energies = measure_energies(model, workload, points, place)
        setting = Setting(config, energies, horizon=None, checkpoints=1, folder=folder)
        in_precision(model, config.scoring.precision)
        with Attribution(model, workload, setting, points, place) as attribution:
            attribution.fit("curvature")
            attribution.prepare(queries)
            probed = probe(setting, workload, again, attribution, points, queries, place)
            table = _table(attribution, points, queries, config.scoring.chunk, place)
            made = _made(attribution, config, checkpoint, probed)
    write_file(out, table, made)
    return ScoredFile(
        file=out,
        points=len(points),
        queries=len(queries),
        estimator=named(config),
        blocks=described(attribution.summary),
        damping={name: found.damping for name, found in attribution.diagnostics.items()},
        probe="" if probed is None else probed.verdict(named(config)),
        left_out=(SUSPICION, HEAD) if config.scoring.exact_head and not setting.exact_head else (SUSPICION,),
    )


def _loaded(workload: Workload, checkpoint: Path) -> nn.Module:
    model = workload.model()
    load_file(model, checkpoint)
    return model


def _table(attribution: Attribution, points: Points, queries: Points, chunk: int, place: Alone) -> pa.Table:
    grid = ChunkGrid(len(points), chunk)
    chunks = score_chunks([attribution], queries, grid, place)
    relative = relative_columns(gather(chunks, points, grid, place), points)
    originals, blocks = points.originals(), [block.name for block in attribution.blocks]
    return pa.concat_tables(
        [
            shard_table(points, queries, blocks, grid.rows(chunk), columns, originals, relative, {})
            for chunk, columns in chunks.items()
        ]
    )


def _made(attribution: Attribution, config: Config, checkpoint: Path, probed: Probe | None) -> dict[str, JSON]:
    return {
        "estimator": named(config),
        "blocks": [block.name for block in attribution.blocks],
        "damping": {name: found.damping for name, found in attribution.diagnostics.items()},
        "checkpoint_sha256": sha256_file(checkpoint),
        "selection": asdict(attribution.summary),
        "probe": None if probed is None else asdict(probed),
        "diagnostics": attribution.describe(),
    }
