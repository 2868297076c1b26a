import pytest
import torch
from torch import Tensor, nn

from flows.errors import BadInput
from flows.ranks.partitioned import in_step, partitioned
from flows.ranks.rank import Alone
from influence import select


class Among(Alone):
    """A rank whose fellows have so many items."""

    def sum(self, tensor: Tensor) -> None:
        tensor += torch.tensor([0.0, 4.0, 2.0], dtype=torch.float64)


AMONG = Among(lambda *_: None, index=0, world=3)


def test_a_rank_with_fewer_items_repeats_the_first_until_all_have_made_as_many_passes() -> None:
    assert list(in_step([5, 8], AMONG, together=True)) == [(5, True), (8, True), (0, False), (0, False)]
    assert list(in_step([], AMONG, together=True)) == [(0, False)] * 4
    assert list(in_step([1, 2, 3, 4, 5], AMONG, together=True)) == [(item, True) for item in range(1, 6)]
    assert list(in_step([5, 8], AMONG, together=False)) == [(5, True), (8, True)]


def test_a_block_that_is_read_by_its_parameters_is_refused_before_anything_is_partitioned() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with (
        pytest.raises(BadInput, match=r"block 1: scoring.placement = 'partitioned' reads linear and convolutional"),
        partitioned(model, select(model)),
    ):
        pass
    assert model[0].weight.shape == (4, 4)
