"""Proposals: immutable, named by their hash, with their evidence beside them.

    hash = sha256(canonical JSON of {rows: [[point_id, action, reason], …] by point_id, dataset_sha256, policy})

The action of a relabeling is written with its label there: `relabel:7`.
Scores are evidence and stay out of the hash (they differ in the last digits between world sizes), and so does the cycle
number: the same removals from the same data under the same policy are the same proposal. On disk `proposal.parquet`
comes first and `proposal.json` seals it, so a proposal is there when its JSON is.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import ProposalDamaged
from storage.files import JSON, atomic_path, atomic_write_json, canonical_json, read_json, sha256_file
from storage.points import PointId
from storage.selection import Selection

TABLE = "proposal.parquet"
SEAL = "proposal.json"
BATCH = 1 << 16


@dataclass(frozen=True)
class Proposal:
    """What one cycle proposes; `rows` are those of `storage.selection.Selection`."""

    cycle: int
    rows: pa.Table
    dataset_sha256: str
    scores_sha256: str
    policy: Mapping[str, JSON]

    @classmethod
    def build(
        cls,
        cycle: int,
        selection: Selection,
        dataset_sha256: str,
        scores_sha256: str,
        policy: Mapping[str, JSON],
    ) -> "Proposal":
        """Make the proposal of a selection; `policy` is `storage.selection.policy_json`."""
        return cls(cycle, selection.rows.sort_by("point_id"), dataset_sha256, scores_sha256, policy)

    @cached_property
    def hash(self) -> str:
        """64 hex digits that a review must carry."""
        around = canonical_json({"dataset_sha256": self.dataset_sha256, "policy": self.policy, "rows": []})
        digest = hashlib.sha256(around.removesuffix("]}").encode())
        for text in _canonical_rows(self.rows):
            digest.update(text.encode())
        digest.update(b"]}")
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Number of points proposed."""
        return int(self.rows.num_rows)

    @property
    def actions(self) -> dict[str, int]:
        """Points by what is to be done to them: remove, relabel, restore; only what occurs."""
        counted = pc.value_counts(self.rows["action"]).to_pylist()
        return {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: entry["values"])}

    @property
    def points(self) -> list[PointId]:
        """Their ids, in order."""
        points: list[PointId] = self.rows["point_id"].to_pylist()
        return points

    def write(self, folder: Path) -> None:
        """Write to a cycle's folder, each file whole or not at all."""
        (folder / SEAL).unlink(missing_ok=True)  # of another table
        with atomic_path(folder / TABLE) as temporary:
            pq.write_table(self.rows, temporary)
        seal: dict[str, JSON] = {
            "proposal": self.hash,
            "cycle": self.cycle,
            "size": self.size,
            "dataset_sha256": self.dataset_sha256,
            "scores_sha256": self.scores_sha256,
            "policy": self.policy,
            "table_sha256": sha256_file(folder / TABLE),
        }
        atomic_write_json(folder / SEAL, seal)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a cycle's folder holds a whole proposal."""
        return (folder / SEAL).is_file()

    @classmethod
    def read(cls, folder: Path) -> "Proposal":
        """Read what `write` wrote and check both hashes.

        Raises:
            ProposalDamaged: rows, evidence or policy are not what was written.
        """
        seal, remedy = read_json(folder / SEAL), f"delete {SEAL} and {TABLE} in {folder} and run again"
        if not (folder / TABLE).is_file() or sha256_file(folder / TABLE) != seal["table_sha256"]:
            raise ProposalDamaged(f"{folder / TABLE} is missing or has changed since it was proposed; {remedy}")
        rows = pq.read_table(folder / TABLE)
        proposal = cls(seal["cycle"], rows, seal["dataset_sha256"], seal["scores_sha256"], seal["policy"])
        if proposal.hash != seal["proposal"]:
            raise ProposalDamaged(
                f"{folder / SEAL} names {seal['proposal'][:12]} but hashes to {proposal.hash[:12]}; {remedy}"
            )
        return proposal


def _canonical_rows(rows: pa.Table) -> Iterator[str]:
    """The inside of the JSON list of canonical rows, in pieces: millions of rows are never Python objects at once."""
    between = ""
    for batch in rows.to_batches(BATCH):
        columns = [batch[name].to_pylist() for name in ("point_id", "action", "reason")]
        labels = batch["new_label"].to_pylist() if "new_label" in batch.schema.names else [None] * len(batch)
        written: list[JSON] = [
            [point, action if label is None else f"{action}:{label}", reason]
            for point, action, reason, label in zip(*columns, labels, strict=True)
        ]
        if written:
            yield between + canonical_json(written)[1:-1]
            between = ","
