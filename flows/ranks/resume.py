"""The state of a training under way: saved as it goes, loaded by the ranks that take it up again.

    <job>/state/step-000123/zero/…       DeepSpeed's files: parameters, optimizer
                           /rank0.pt …   of each rank: its random numbers and its buffers
                           /MANIFEST.json

The order of the points, their masks and the learning rates follow from the step, so nothing of them is kept. DeepSpeed
unpickles its files, which runs whatever is in them: they are loaded only after every byte has been checked against the
manifest that this workspace wrote.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from flows.plans import Job
from flows.ranks import randomness
from flows.ranks.engine import Engine
from flows.ranks.rank import Rank
from storage import checkpoints
from storage.checkpoints import Checkpoint, Metadata

STATE = "state"
ZERO = "zero"


class Resume:
    """The states of one job.

    Args:
        job: The model in training.
        model_digest: Of its definition.
        rank: This process; all ranks must call each method together.
    """

    def __init__(self, job: Job, model_digest: str, rank: Rank) -> None:
        self._job, self._digest, self._rank = job, model_digest, rank
        self._folder = job.folder / STATE

    def save(self, engine: Engine, step: int) -> None:
        """Save where the training stands after a step, then remove the state before."""
        draft = checkpoints.temporary(self._folder, step)
        if self._rank.index == 0:
            checkpoints.begin(self._folder, step)
        dist.barrier()
        engine.save_state(draft, ZERO)
        torch.save({"draws": randomness.draws(), "buffers": engine.buffers()}, draft / f"rank{self._rank.index}.pt")
        dist.barrier()
        if self._rank.index == 0:
            metadata = Metadata(self._job.role, self._job.seed, step, self._digest, self._rank.world)
            checkpoints.commit(draft, metadata, needed="rank0.pt")
            checkpoints.keep(self._folder, newest=1)
        dist.barrier()

    def load(self, engine: Engine) -> int:
        """Put the newest state into an engine just made.

        Returns:
            The step it was saved after; 0 if there is none.

        Raises:
            storage.errors.CheckpointDamaged: It is not what was written.
        """
        found = self._verified()
        if found is None:
            return 0
        engine.load_state(found.path, ZERO)
        own = torch.load(found.path / f"rank{self._rank.index}.pt", weights_only=True)
        engine.set_buffers(own["buffers"])
        randomness.restore(own["draws"])
        return found.metadata.step

    def end(self) -> None:
        """Remove what is left once the model itself is saved."""
        if self._rank.index == 0 and self._folder.exists():
            checkpoints.keep(self._folder, newest=0)
            self._folder.rmdir()

    def _verified(self) -> Checkpoint | None:
        # by one rank for all: each byte is read once
        found = [checkpoints.latest(self._folder) if self._rank.index == 0 else None]
        dist.broadcast_object_list(found, 0)
        return found[0]
