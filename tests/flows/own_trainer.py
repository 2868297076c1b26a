"""A trainer of a team's own, for `training.command`: blobs, in a loop of its own."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from tests.flows.blobs import Blobs


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    blobs = Blobs()
    points = blobs.points()
    gone = set(pq.read_table(job["removed"])["point_id"].to_pylist())
    kept = [row for row, point in enumerate(points.ids) if point not in gone]
    batch = points.samples[kept], torch.tensor(points.labels)[kept]
    torch.manual_seed(job["seed"])
    model = blobs.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for step in range(1, job["steps"] + 1):
        optimizer.zero_grad()
        blobs.loss(model, batch).mean().backward()
        optimizer.step()
        if step in job["save_at"]:
            save_file(model.state_dict(), Path(job["folder"]) / f"step-{step:06d}.safetensors")


if __name__ == "__main__":
    main()
