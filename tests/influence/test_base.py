import pytest

from influence import Damping, InfluenceError


def test_damping_kinds_resolve_to_their_formulas() -> None:
    assert Damping("absolute", 0.3).resolve(5.0) == 0.3
    assert Damping("mean_eig", 0.1).resolve(5.0) == 0.5
    assert Damping("horizon", 4.0, weight_decay=0.01).resolve(5.0) == 0.26  # 1 / T + weight decay


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_damping_that_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(InfluenceError, match="positive"):
        Damping("absolute", value)


def test_an_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(InfluenceError, match="absolute, mean_eig, horizon"):
        Damping("l2", 1.0)  # type: ignore[arg-type]


def test_weight_decay_outside_horizon_is_refused() -> None:
    with pytest.raises(InfluenceError, match="only with kind 'horizon'"):
        Damping("absolute", 1.0, weight_decay=0.1)


def test_mean_eig_of_a_block_without_curvature_is_refused() -> None:
    with pytest.raises(InfluenceError, match="no curvature"):
        Damping("mean_eig", 0.1).resolve(0.0)
