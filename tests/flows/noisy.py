"""Blobs whose model draws and remembers: dropout, noise of numpy's on the inputs, a mean of each rank's own batches."""

import numpy as np
import torch
from torch import Tensor, nn

from tests.flows.blobs import Batch, Blobs


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.centre.lerp_(x.mean(0), 0.1)
        return x - self.centre


class Noisy(Blobs):
    def model(self) -> nn.Module:
        return nn.Sequential(Centred(), nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        noise = np.random.standard_normal(tuple(batch[0].shape)) if model.training else np.zeros(1)
        return model(batch[0] + 0.1 * torch.from_numpy(noise).float())
