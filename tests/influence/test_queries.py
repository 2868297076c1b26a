import pytest
import torch
from torch import Tensor, nn

from influence import InfluenceError, Queries, Reader, each, group_means, select
from tests.influence.cases import (
    TASK,
    Batch,
    conv_net,
    images,
    mlp,
    over_positions,
    per_point,
    per_point_gradients,
    points,
    query_gradients,
    split,
)

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # float64, entries of order 1

MODELS = {
    "mlp": (mlp(), points(9, seed=2)),
    "positions": (over_positions(), points(9, positions=4, seed=2)),
    "conv": (conv_net(), images(9, seed=2)),
}
every_model = pytest.mark.parametrize("case", MODELS)


def margin(z: Tensor, y: Tensor) -> Tensor:
    others = torch.arange(len(z)) != y
    return z.gather(0, y[None])[0] - z.where(others, -torch.inf).logsumexp(0)


def confident(batch: Batch, doubt: float) -> tuple[nn.Sequential, Batch]:
    """A softmax regression that gives the label of every point the probability 1 - doubt."""
    x, y = batch
    model = nn.Sequential(nn.Linear(5, 3)).double()
    model[0].weight.data.zero_()
    model[0].bias.data = torch.zeros(3).double().index_fill(0, y[:1], torch.tensor(2 * (1 - doubt) / doubt).log())
    return model, (x, y[:1].expand(len(y)))


@every_model
def test_gradients_are_those_of_minus_the_margin_by_autograd(case: str) -> None:
    model, batch = MODELS[case]
    found = query_gradients(model, batch)
    for name, truth in per_point(model, batch, margin).items():
        torch.testing.assert_close(found.gradients[name], -truth, **ROUNDING)


@every_model
def test_times_the_doubt_they_are_those_of_the_loss(case: str) -> None:
    model, batch = MODELS[case]
    found = query_gradients(model, batch)
    p = TASK.logits(model, batch).softmax(1)[torch.arange(9), batch[1]].detach()
    torch.testing.assert_close(found.doubt, 1 - p, **ROUNDING)
    for name, truth in per_point_gradients(model, batch).items():
        torch.testing.assert_close(found.doubt[:, None, None] * found.gradients[name], truth, **ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_confidently_right_query_keeps_its_margin_gradient_and_its_doubt(dtype: torch.dtype) -> None:
    # p_y = 1 - 1e-9 rounds to 1 in float32, and so would the residual p - e_y and 1 - p_y.
    model, (x, y) = confident(points(4), 1e-9)
    found = query_gradients(model.to(dtype), (x.to(dtype), y))
    # Rounding of the logit of 21.4, and its exponential: 21.4 * 2^-24 in float32.
    torch.testing.assert_close(found.doubt, torch.full((4,), 1e-9).double(), rtol=1e-5, atol=0)
    assert (found.gradients["0"].flatten(1).norm(dim=1) > 1).all()


@every_model
def test_queries_are_held_in_their_order_over_batches(case: str) -> None:
    model, batch = MODELS[case]
    whole = query_gradients(model, batch)
    found = in_batches(model, batch, 9)
    for name, gradients in whole.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradients, **ROUNDING)
    torch.testing.assert_close(found.doubt, whole.doubt, **ROUNDING)
    assert found.labels.equal(batch[1])


@every_model
def test_group_means_are_the_means_of_their_queries_loss_gradients(case: str) -> None:
    model, batch = MODELS[case]
    groups = torch.tensor([2, 0, 2, 0, 2, 2, 0, 0, 4])
    with Reader(model, TASK, select(model)) as reader:
        found = group_means(map(reader.queries, split(batch, 4)), groups, 5)
    assert found.sizes.tolist() == [4, 0, 4, 0, 1]
    for name, truth in per_point_gradients(model, batch).items():
        for group in (0, 2, 4):
            torch.testing.assert_close(found.gradients[name][group], truth[groups == group].mean(0), **ROUNDING)
        assert found.gradients[name][[1, 3]].eq(0).all()  # groups without queries


@pytest.mark.parametrize("announced", [0, 8, 10])
def test_fewer_or_more_queries_than_announced_are_refused(announced: int) -> None:
    with pytest.raises(InfluenceError, match=f"{announced} announced"):
        in_batches(*MODELS["mlp"], announced)


@pytest.mark.parametrize("announced", [0, 8, 10])
def test_queries_without_a_group_and_groups_without_a_query_are_refused(announced: int) -> None:
    model, batch = MODELS["mlp"]
    with Reader(model, TASK, select(model)) as reader, pytest.raises(InfluenceError, match=f"{announced} have a group"):
        group_means(map(reader.queries, split(batch, 4)), torch.zeros(announced, dtype=torch.int64), 1)


def in_batches(model: nn.Module, batch: Batch, announced: int) -> Queries:
    with Reader(model, TASK, select(model)) as reader:
        return each(map(reader.queries, split(batch, 4)), announced)
