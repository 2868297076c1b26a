import math

import pytest
import torch
from torch import Tensor

from influence import Conformity, InfluenceError, Share, label_conformity

N, M, D = 600, 90, 4


def clouds(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes around corners, 3 apart, of spread 1."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return torch.randn(n, D, generator=g) + 3 * torch.eye(D)[labels], labels


def test_conformity_is_the_log_ratio_of_the_mean_distances() -> None:
    queries, labels = torch.tensor([[0.0], [1.0], [10.0], [14.0]]), torch.tensor([0, 0, 1, 1])
    found = label_conformity(torch.tensor([[2.0], [2.0]]), torch.tensor([0, 1]), queries, labels, k=2)
    torch.testing.assert_close(found.points, torch.tensor([math.log(10 / 1.5), math.log(1.5 / 10)]).double())
    own = [
        math.log(12 / 1),
        math.log(11 / 1),
        math.log(9.5 / 4),
        math.log(13.5 / 4),
    ]  # a query is not its own neighbour
    torch.testing.assert_close(found.queries, torch.tensor(own).double())


def test_a_wrong_label_conforms_less_than_a_right_one() -> None:
    inputs, labels = clouds(N, 0)
    right, wrong = (label_conformity(inputs, given, *clouds(M, 1)).points for given in (labels, (labels + 1) % 3))
    assert right.median() > right.quantile(0.2) > wrong.quantile(0.8)  # nearest of clouds that overlap by a few percent


def test_right_labels_conform_as_those_of_the_queries_do() -> None:
    found = label_conformity(*clouds(N, 0), *clouds(M, 1))
    shares = [(found.points < found.queries.quantile(share)).double().mean() for share in (0.1, 0.5, 0.9)]
    error = 3 * 0.5 / M**0.5  # three of a share's standard errors, of M queries
    assert all(abs(found - share) < error for found, share in zip(shares, (0.1, 0.5, 0.9)))


def test_shares_of_any_number_of_ranks_add_up_to_the_same_numbers() -> None:
    whole = label_conformity(*clouds(N, 0), *clouds(M, 1))
    parts = [label_conformity(*clouds(N, 0), *clouds(M, 1), share=Share(rank, 2)).points for rank in range(2)]
    assert torch.equal(sum(parts), whole.points)


def test_distance_has_no_unit_and_no_origin() -> None:
    (inputs, labels), (queries, theirs) = clouds(N, 0), clouds(M, 1)
    found = label_conformity(inputs, labels, queries, theirs)
    far = label_conformity(7 * inputs.double() + 1e3, labels, 7 * queries.double() + 1e3, theirs)
    torch.testing.assert_close(far.points, found.points, rtol=1e-9, atol=1e-9)  # 1e3 costs 3 of 16 digits, 1e3^2 none


def test_a_label_that_no_query_has_or_all_have_is_not_judged() -> None:
    inputs, labels = clouds(N, 0)
    found = label_conformity(inputs, labels, inputs[labels < 2], labels[labels < 2])
    assert found.points[labels == 2].isnan().all()
    assert found.points[labels < 2].isfinite().all()
    assert label_conformity(inputs, labels, inputs[labels == 1], labels[labels == 1]).queries.isnan().all()
    lone = label_conformity(inputs, labels, inputs[:3], labels[:3])  # one query of each class
    assert lone.points.isfinite().all()
    assert lone.queries.isnan().all()


def test_copies_of_queries_conform_most() -> None:
    (inputs, labels), (queries, theirs) = clouds(N, 0), clouds(M, 1)
    inputs[0], labels[0] = queries[0], theirs[0]
    found: Conformity = label_conformity(inputs, labels, queries, theirs, k=1)
    assert found.points.isfinite().all()
    assert found.points.argmax() == 0


def test_bad_input_is_one_clear_line() -> None:
    inputs, labels = clouds(6, 0)
    with pytest.raises(InfluenceError, match="k = 0"):
        label_conformity(inputs, labels, inputs, labels, k=0)
    with pytest.raises(InfluenceError, match="4 and queries of 3 features"):
        label_conformity(inputs, labels, inputs[:, :3], labels)
    inputs[2, 1] = torch.inf
    with pytest.raises(InfluenceError, match="point 2"):
        label_conformity(inputs, labels, inputs[:1], labels[:1])
    with pytest.raises(InfluenceError, match="query 2"):
        label_conformity(inputs[:1], labels[:1], inputs, labels)
