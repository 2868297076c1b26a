"""What a point costs beside tables ten and a hundred times as long: `python -m tests.benchmarks.tables OUT`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from flows.workloads.ranking import TwoTables
from influence import EKFAC, GroupScorer, Influence, Reader, group_means, select
from tests.benchmarks.floor import Work, in_turns
from tests.benchmarks.jobs import DAMPING, TASK
from tests.benchmarks.rows import Row, write
from tests.benchmarks.setups import Batch

USERS, SHORT, LONGER = 5000, 5000, (50_000, 500_000)
WIDTH, HIDDEN = 16, 32
POINTS, QUERIES, BATCH, ROUNDS = 20_000, 200, 512, 7


def main() -> None:
    """Measure and write the rows."""
    torch.set_num_threads(1)
    write(Path(sys.argv[1]), measure())


def measure() -> list[Row]:
    """CPU seconds of scoring the same number of points beside few items and beside many."""
    with ExitStack() as engines:
        seconds = in_turns({f"{items}": engines.enter_context(scored(items)) for items in (SHORT, *LONGER)}, ROUNDS)
    thousand = {items: 1000 * seconds[f"{items}"] * 1000 / POINTS for items in (SHORT, *LONGER)}
    return [
        Row(
            f"a point beside {items:,} items",
            f"ranking, {USERS:,} users, {POINTS:,} x {QUERIES:,}, EK-FAC fitted: self + mean",
            thousand[items] / thousand[SHORT],
            f"x one beside {SHORT:,}",
            1.1,
            f"{thousand[items]:.3g} ms, {thousand[SHORT]:.3g} ms a thousand points; curvature and queries made before",
        )
        for items in LONGER
    ]


@contextmanager
def scored(items: int) -> Iterator[Work]:
    """Self-influence and influence on the mean of the queries, of pairs that are drawn from all users and items."""
    torch.manual_seed(0)
    model = TwoTables(USERS, items, WIDTH, HIDDEN).eval()
    blocks, train, queries = select(model), drawn(POINTS, items), drawn(QUERIES, items)
    with Influence(model, TASK, EKFAC(blocks), blocks) as influence:
        influence.fit(train, DAMPING)
    with Reader(model, TASK, blocks) as reader:
        mean = group_means(map(reader.queries, queries), torch.zeros(QUERIES, dtype=torch.int64), 1)
        scorer = GroupScorer(influence.curvature, mean, POINTS)
        yield lambda: [scorer.score(reader.losses(batch).losses) for batch in train]


def drawn(count: int, items: int) -> list[Batch]:
    """Batches of users, items and labels."""
    pairs = torch.stack([torch.randint(USERS, (count,)), torch.randint(items, (count,))], 1)
    return list(zip(pairs.split(BATCH), torch.randint(2, (count,)).split(BATCH), strict=True))


if __name__ == "__main__":
    main()
