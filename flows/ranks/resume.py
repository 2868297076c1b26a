"""The state of a training under way: saved as it goes, loaded by the ranks that take it up again.

    <job>/state/step-000123/zero/…       DeepSpeed's files: parameters, optimizer
                           /rank0.pt …   of each rank: its random numbers and its buffers
                           /dropped.parquet   where points are dropped while learning: which, so far
                           /MANIFEST.json

The order of the points, their masks and the learning rates follow from the step, so nothing of them is kept. DeepSpeed
unpickles its files, which runs whatever is in them: they are loaded only after every byte has been checked against the
manifest that this workspace wrote.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from flows.errors import BadInput
from flows.plans import STATE, Job
from flows.ranks import randomness
from flows.ranks.engine import Engine, universal
from flows.ranks.rank import Rank
from storage import checkpoints, drop_store
from storage.checkpoints import Checkpoint, Metadata
from storage.errors import WriteFailed
from storage.files import JSON

ZERO = "zero"
TORCHS_WRITER = ("inline_container", "iostream error")


class Resume:
    """The states of one job; all ranks must call each method together.

    Args:
        job: The model in training.
        stage: Its ZeRO stage.
        model_digest: Of its definition.
        rank: This process.

    Raises:
        BadInput: The newest state is of another stage.
        storage.errors.CheckpointDamaged: It is not what was written.
    """

    def __init__(self, job: Job, stage: int, model_digest: str, rank: Rank) -> None:
        self._job, self._stage, self._digest, self._rank = job, stage, model_digest, rank
        self._folder = job.folder / STATE
        self._found = self._verified()
        if self._found is not None and self._found.metadata.extra["zero_stage"] != stage:
            then = self._found.metadata.extra["zero_stage"]
            raise BadInput(
                f"training.zero_stage = {stage}, but {self._found.path} was saved at stage {then}, which no other can "
                f"load: give zero_stage = {then} again, or remove {self._folder} to train this model from its beginning"
            )

    @property
    def universal(self) -> bool:
        """Whether the engine must be made for a state of another number of ranks."""
        return self._found is not None and self._stage > 0 and self._found.metadata.world_size != self._rank.world

    def load(self, engine: Engine) -> int:
        """Put the newest state into an engine just made.

        On another number of ranks the sums are rounded otherwise, and what a rank draws begins anew.

        Returns:
            The step it was saved after; 0 if there is none.
        """
        if self._found is None:
            return 0
        step, world = self._found.metadata.step, self._found.metadata.world_size
        if self.universal:
            self._load_universal(engine, self._found.path, step)
        else:
            engine.load_state(self._found.path, ZERO)
        same = world == self._rank.world
        own = self._found.path / f"rank{self._rank.index if same else 0}.pt"
        kept = torch.load(own, map_location="cpu", weights_only=True)
        engine.set_buffers(kept["buffers"])
        if same:
            randomness.restore(kept["draws"])
        return step

    @property
    def losses(self) -> list[float]:
        """The query losses that the state was saved with."""
        losses: Any = () if self._found is None else self._found.metadata.extra["query_losses"]
        return list(losses)

    @property
    def dropped(self) -> pa.Table | None:
        """The points that were dropped until the state was saved."""
        return None if self._found is None else drop_store.read(self._found.path)

    def save(self, engine: Engine, step: int, losses: Sequence[float], dropped: pa.Table | None) -> None:
        """Save where the training stands after a step, then remove the state before."""
        self._rank.meter.enter("saving the state")
        draft = checkpoints.temporary(self._folder, step)
        if self._rank.index == 0:
            checkpoints.begin(self._folder, step)
        dist.barrier()
        with _writing(draft):
            engine.save_state(draft, ZERO)
            torch.save({"draws": randomness.draws(), "buffers": engine.buffers()}, draft / f"rank{self._rank.index}.pt")
        dist.barrier()
        if self._rank.index == 0:
            if dropped is not None:
                drop_store.write(draft, dropped)
            of: dict[str, JSON] = {"zero_stage": self._stage, "query_losses": losses}
            metadata = Metadata(self._job.role, self._job.seed, step, self._digest, self._rank.world, of)
            checkpoints.commit(draft, metadata, needed="rank0.pt")
            checkpoints.keep(self._folder, newest=1)
        dist.barrier()

    def _load_universal(self, engine: Engine, state: Path, step: int) -> None:
        draft = checkpoints.temporary(self._folder, step)
        if self._rank.index == 0:
            universal(state, ZERO, into=draft)
        dist.barrier()
        engine.load_state(draft, ZERO)
        dist.barrier()
        if self._rank.index == 0:
            shutil.rmtree(draft)

    def _verified(self) -> Checkpoint | None:
        # by one rank for all: each byte is read once
        found = [checkpoints.latest(self._folder) if self._rank.index == 0 else None]
        dist.broadcast_object_list(found, 0)
        return found[0]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer has no error class of its own
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in TORCHS_WRITER):
            raise
        shutil.rmtree(folder, ignore_errors=True)  # so that there is room to say so
        raise WriteFailed(f"cannot write {folder}: {error}; free space or fix permissions, then run again") from error
