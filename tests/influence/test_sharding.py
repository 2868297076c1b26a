import pytest

from influence import ChunkGrid, InfluenceError, Share


@pytest.mark.parametrize(("points", "chunk"), [(0, 4), (1, 4), (8, 4), (10, 4), (3, 100)])
def test_chunks_cover_every_row_once_in_order_without_padding(points: int, chunk: int) -> None:
    grid = ChunkGrid(points, chunk)
    assert [row for c in range(len(grid)) for row in grid.rows(c)] == list(range(points))
    assert all(0 < len(grid.rows(c)) <= chunk for c in range(len(grid)))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_share_all_items_and_none_twice(world: int) -> None:
    dealt = [item for rank in range(world) for item in Share(rank, world).of(10)]
    assert sorted(dealt) == list(range(10))
    for rank in range(world):
        share = Share(rank, world)
        assert [item for item in range(10) if share.owns(item)] == list(share.of(10))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_items_of_unequal_cost_are_dealt_alike_on_every_rank_and_no_rank_has_a_third_more_than_must_be(
    world: int,
) -> None:
    costs = [3137.0, 128.0, 128.0, 10.0, 577.0, 64.0, 289.0, 32.0, 1600.0, 900.0]
    dealt = [Share(rank, world).owners(costs) for rank in range(world)]
    assert all(owners == dealt[0] for owners in dealt)
    load = [sum(cost for cost, owner in zip(costs, dealt[0]) if owner == rank) for rank in range(world)]
    assert sum(load) == sum(costs)
    assert max(load) <= 4 / 3 * max(sum(costs) / world, max(costs))  # Graham 1969


def test_impossible_shares_and_chunks_are_refused() -> None:
    with pytest.raises(InfluenceError, match="rank 2 of 2"):
        Share(2, 2)
    with pytest.raises(InfluenceError, match="chunks of 0"):
        ChunkGrid(5, 0)
    with pytest.raises(InfluenceError, match="chunk 2 of 2"):
        ChunkGrid(8, 4).rows(2)
