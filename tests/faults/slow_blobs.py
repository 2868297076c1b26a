"""Blobs whose training holds after some steps for as long as there is a file."""

import time
from pathlib import Path

from torch import Tensor, nn

from tests.flows.blobs import Batch, Blobs


class SlowBlobs(Blobs):
    def __init__(self, hold: str) -> None:
        super().__init__()
        self.hold, self.calls = Path(hold), 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.calls += model.training
        while self.calls > 5 and model.training and self.hold.exists():
            time.sleep(0.1)
        return super().loss(model, batch)
