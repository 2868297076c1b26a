"""Who does what among ranks: pure arithmetic, the same on every rank.

Points lie in a fixed order and are cut into chunks of a fixed size. Chunk c belongs to rank c mod world, so that every
chunk is computed in the same way on any number of ranks, and no chunk is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from influence.errors import InfluenceError


@dataclass(frozen=True)
class Share:
    """One rank's share of work items that are dealt out in turn."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise InfluenceError(f"rank {self.rank} of {self.world}: ranks count from 0 to world - 1")

    def of(self, count: int) -> range:
        """The items, out of `count`, that are this rank's."""
        return range(self.rank, count, self.world)

    def owns(self, item: int) -> bool:
        """Whether an item is this rank's."""
        return item % self.world == self.rank

    def owners(self, costs: Sequence[float]) -> list[int]:
        """The rank of each of some items of unequal cost: the dearest first, each to the rank with least to do."""
        owners, load = [0] * len(costs), [0.0] * self.world
        for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
            owners[item] = min(range(self.world), key=load.__getitem__)
            load[owners[item]] += costs[item]
        return owners


WHOLE = Share()


@dataclass(frozen=True)
class ChunkGrid:
    """A fixed cut of `points` rows into chunks of `chunk` rows; the last one may be shorter. `len` counts chunks."""

    points: int
    chunk: int

    def __post_init__(self) -> None:
        if self.points < 0 or self.chunk < 1:
            raise InfluenceError(f"{self.points} points in chunks of {self.chunk}: give at least 0 and 1")

    def __len__(self) -> int:
        return -(-self.points // self.chunk)

    def rows(self, index: int) -> range:
        """The rows of a chunk.

        Raises:
            InfluenceError: there is no such chunk.
        """
        if not 0 <= index < len(self):
            raise InfluenceError(f"chunk {index} of {len(self)}: chunks count from 0")
        return range(index * self.chunk, min(self.points, (index + 1) * self.chunk))
