"""Blobs whose train set is what a JSON file says it is now."""

import json
from pathlib import Path
from typing import Any

from tests.flows.blobs import Blobs, Cloud


class Moving(Blobs):
    """Without the file, the blobs.

    Args:
        state: A JSON file of ids: `mended` carry their true label, `shifted` another sample, `gone` are not there.
        own: Keyword arguments of Blobs.
    """

    def __init__(self, state: str, **own: Any) -> None:
        super().__init__(**own)
        self.state = Path(state)

    def points(self) -> Cloud:
        cloud = super().points()
        said: dict[str, list[int]] = json.loads(self.state.read_text()) if self.state.exists() else {}
        for row in said.get("mended", []):
            cloud.labels[row] = int(cloud.true[row])
        for row in said.get("shifted", []):
            cloud.samples[row] += 0.1
        kept = [row for row in range(len(cloud)) if row not in said.get("gone", [])]
        cloud.samples, cloud.true = cloud.samples[kept], cloud.true[kept]
        cloud.labels, cloud.ids = [cloud.labels[row] for row in kept], [cloud.ids[row] for row in kept]
        return cloud
