"""Blobs whose training holds for as long as there is a file."""

import time
from pathlib import Path

from torch import Tensor, nn

from tests.flows.blobs import Batch, Blobs


class SlowBlobs(Blobs):
    def __init__(self, hold: str) -> None:
        super().__init__()
        self.hold = Path(hold)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        while model.training and self.hold.exists():
            time.sleep(0.1)
        return super().loss(model, batch)
