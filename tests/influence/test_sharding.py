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


def test_impossible_shares_and_chunks_are_refused() -> None:
    with pytest.raises(InfluenceError, match="rank 2 of 2"):
        Share(2, 2)
    with pytest.raises(InfluenceError, match="chunks of 0"):
        ChunkGrid(5, 0)
    with pytest.raises(InfluenceError, match="chunk 2 of 2"):
        ChunkGrid(8, 4).rows(2)
