"""Proposals: immutable, named by their hash, with their evidence beside them.

    hash = sha256(canonical JSON of {rows: [[point_id, action, reason], …] by point_id, dataset_sha256, policy})

Scores are evidence and stay out of the hash (they differ in the last digits between world sizes), and so does the cycle
number: the same removals from the same data under the same policy are the same proposal. On disk `proposal.parquet`
comes first and `proposal.json` seals it, so a proposal is there when its JSON is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import ProposalDamaged
from storage.files import JSON, atomic_path, atomic_write_json, read_json, sha256_file, sha256_json
from storage.points import PointId
from storage.selection import Selection

TABLE = "proposal.parquet"
SEAL = "proposal.json"


@dataclass(frozen=True)
class Proposal:
    """What one cycle proposes to remove; `rows` are those of `storage.selection.Selection`."""

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
        rows = zip(*(self.rows[name].to_pylist() for name in ("point_id", "action", "reason")), strict=True)
        return sha256_json(
            {"rows": [list(row) for row in rows], "dataset_sha256": self.dataset_sha256, "policy": self.policy}
        )

    @property
    def size(self) -> int:
        """Number of points proposed."""
        return int(self.rows.num_rows)

    @property
    def points(self) -> list[PointId]:
        """Their ids, in order."""
        points: list[PointId] = self.rows["point_id"].to_pylist()
        return points

    def write(self, folder: Path) -> None:
        """Write to a cycle's folder, each file whole or not at all."""
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
