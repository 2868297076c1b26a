import pytest
import torch
from torch import Tensor

from influence import InfluenceError
from influence.redundancy import SLACK, redundancy

N = 2000
EVERYONE = torch.ones(N, dtype=torch.bool)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Self-influence that grows with the class, classes and keys."""
    g = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 10, (N,), generator=g)
    keys = torch.randint(-(2**63), 2**63 - 1, (N,), generator=g)
    return (classes + torch.rand(N, generator=g)).double(), classes, keys


def test_a_larger_share_leaves_out_what_a_smaller_one_does_and_no_more_than_it_says() -> None:
    own, classes, keys = drawn()
    found = redundancy(own.flip(0), [classes], EVERYONE, keys)  # of no class more than of another
    for share in (0.1, 0.2, 0.4):
        assert 0.95 * share * N <= int((found <= share).sum()) <= share * N
    assert bool((found > 0).all())


def test_points_of_small_self_influence_are_thinned_and_not_emptied() -> None:
    own, _, keys = drawn()
    out = redundancy(own, [], EVERYONE, keys) <= 0.4
    quarters = [out[part].double().mean().item() for part in own.argsort().split(N // 4)]
    assert quarters == sorted(quarters, reverse=True)
    assert 0.5 < quarters[0] < 0.85  # 1 - exp(-t (7/8)^2) = .73 on average, where t makes it .4 over all
    assert quarters[3] < 0.1


def test_no_class_and_no_group_loses_more_than_its_part() -> None:
    own, classes, keys = drawn()
    groups = torch.where(classes == 0, 0, -1)
    found = redundancy(own, [classes, groups], EVERYONE, keys)
    assert (redundancy(own, [], EVERYONE, keys)[classes == 0] <= 0.4).double().mean() > 0.7
    for share in (0.2, 0.4):
        for value in range(10):
            assert (found[classes == value] <= share).double().mean() <= SLACK * share + 1e-9


def test_what_is_drawn_for_a_point_does_not_depend_on_where_it_stands() -> None:
    own, classes, keys = drawn()
    mixed = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    found = redundancy(own, [classes], EVERYONE, keys)
    torch.testing.assert_close(redundancy(own[mixed], [classes[mixed]], EVERYONE, keys[mixed]), found[mixed])


def test_points_that_are_not_in_training_neither_count_nor_have_a_number() -> None:
    own, classes, keys = drawn()
    eligible = torch.arange(N) % 2 == 0
    found = redundancy(own, [classes], eligible, keys)
    assert bool(found[~eligible].isnan().all())
    half = redundancy(own[eligible], [classes[eligible]], eligible[eligible], keys[eligible])
    torch.testing.assert_close(found[eligible], half)


def test_copies_go_first_and_within_the_share_and_what_they_repeat_stays() -> None:
    own, classes, keys = drawn()
    own = own.flip(0).index_fill(0, torch.arange(200), 100.0)  # copies would go last
    originals = torch.full((N,), -1)
    originals[:200] = torch.arange(400, 600)  # a tenth are copies
    found = redundancy(own, [classes], EVERYONE, keys, originals)
    assert bool(found[400:600].isnan().all())
    assert set((found <= 0.06).nonzero()[:, 0].tolist()) < set(range(200))
    assert int((found <= 0.06).sum()) == 0.06 * N
    assert int((found[:200] <= 0.1).sum()) == 200
    for share in (0.1, 0.3):
        assert 0.95 * share * N <= int((found <= share).sum()) <= share * N


def test_a_class_that_is_copies_gives_all_of_them_and_nothing_else() -> None:
    own, _, keys = drawn()
    classes = (torch.arange(N) >= 500).long()
    originals = torch.where(torch.arange(N) < 499, 499, -1)  # all of a class are copies of its last
    out = redundancy(own, [classes], EVERYONE, keys, originals) <= 0.4
    assert out[:500].tolist() == [True] * 499 + [False]
    assert int(out.sum()) == 0.4 * N


def test_without_copies_the_shares_are_those_without_knowing_of_copies() -> None:
    own, classes, keys = drawn()
    none = torch.full((N,), -1)
    assert redundancy(own, [classes], EVERYONE, keys, none).equal(redundancy(own, [classes], EVERYONE, keys))


def test_ties_everywhere_and_a_value_that_is_not_finite() -> None:
    keys = drawn()[2]
    assert int((redundancy(torch.zeros(N), [], EVERYONE, keys) <= 0.25).sum()) == N // 4
    with pytest.raises(InfluenceError, match="row 3 is not finite"):
        redundancy(torch.zeros(N).index_fill_(0, torch.tensor([3]), torch.inf), [], EVERYONE, keys)
