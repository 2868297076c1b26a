import pytest
import torch
from torch import Tensor, nn

from influence import Damping, InfluenceError, select
from influence.curvature.kronecker import EKFAC
from influence.unrolling import Segment, unroll, unrolled_influence
from tests.influence.cases import (
    Batch,
    ekfac,
    loss_factors,
    mlp,
    normed,
    per_point_gradients,
    points,
    rebuild,
)

N = 30
MODELS = {"mlp": mlp, "norm": normed}
every_model = pytest.mark.parametrize("case", MODELS)


def segments(case: str) -> tuple[nn.Module, list[Segment]]:
    """Two, whose curvatures differ: fitted on other points."""
    model = MODELS[case]()
    return model, [Segment(ekfac(model, points(N)), 3.0), Segment(ekfac(model, points(N, seed=5)), 2.0)]


def gradient_descent(
    parts: list[Segment], name: str, gradients: list[Tensor], steps: int, momentum: float, weight_decay: float
) -> Tensor:
    """What leaving a point with these gradients out of every batch does to the parameters, step by step, [o i]."""
    moved = torch.zeros_like(gradients[0])
    velocity = torch.zeros_like(moved)
    for segment, gradient in zip(parts, gradients, strict=True):
        hessian = rebuild(segment.curvature, name, weight_decay)
        rate = segment.horizon * (1 - momentum) / steps
        for _ in range(steps):
            velocity = momentum * velocity + hessian @ moved - gradient / N
            moved = moved - rate * velocity
    return moved


@every_model
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_small_steps_of_gradient_descent_on_quadratics_do_what_the_filters_say(case: str, momentum: float) -> None:
    model, parts = segments(case)
    queries = per_point_gradients(model, points(1, seed=2))
    met = unroll(parts, queries, weight_decay=0.05)
    for name, query in queries.items():
        pair = [per_point_gradients(model, points(1, seed=seed))[name].flatten() for seed in (3, 4)]
        found = sum(one[name].flatten() @ gradient / N for one, gradient in zip(met, pair, strict=True))
        coarse, fine = (
            query.flatten() @ gradient_descent(parts, name, pair, steps, momentum, 0.05) for steps in (2000, 4000)
        )
        # the error is that of (1 - h/K)^K against exp(-h) and of the momentum's start: O(1/K), here below 1e-3
        torch.testing.assert_close(found, fine, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found, 2 * fine - coarse, rtol=1e-5, atol=1e-8)  # what is left is O(1/K^2)


@every_model
def test_a_segment_without_end_is_influence_damped_by_the_weight_decay(case: str) -> None:
    model = MODELS[case]()
    curvature, queries = (
        ekfac(model, points(N), Damping("absolute", 0.05)),
        per_point_gradients(model, points(4, seed=2)),
    )
    [met] = unroll([Segment(curvature, 1e9)], queries, weight_decay=0.05)
    for name, solved in curvature.solve(queries).items():
        torch.testing.assert_close(met[name], solved, rtol=1e-10, atol=1e-10)  # rounding alone


def test_a_short_segment_is_the_learning_rate_times_gradient_dots() -> None:
    model = mlp()
    queries = per_point_gradients(model, points(4, seed=2))
    [met] = unroll([Segment(ekfac(model, points(N)), 1e-6)], queries)
    for name, one in queries.items():
        torch.testing.assert_close(met[name] / 1e-6, one, rtol=1e-4, atol=1e-6)  # eigenvalues below 10 times 1e-6


def test_what_is_flat_is_followed_for_the_whole_horizon() -> None:
    model = mlp()
    curvature = ekfac(model, points(1))  # one point: most directions are flat
    queries = per_point_gradients(model, points(4, seed=2))
    [met] = unroll([Segment(curvature, 7.0)], queries)
    for name, one in queries.items():
        values, vectors = torch.linalg.eigh(rebuild(curvature, name))
        flat = vectors[:, values < 1e-12]
        assert flat.shape[1] > 1
        torch.testing.assert_close(met[name].flatten(1) @ flat, 7 * one.flatten(1) @ flat, rtol=1e-9, atol=1e-9)


def test_an_earlier_segment_is_seen_through_the_later_ones() -> None:
    model, parts = segments("mlp")
    queries = per_point_gradients(model, points(4, seed=2))
    met = unroll(parts, queries)
    for name, query in queries.items():
        first, last = (rebuild(part.curvature, name) for part in parts)
        identity = torch.eye(len(first), dtype=torch.float64)
        through = torch.linalg.matrix_exp(-2 * last)
        kept = torch.linalg.solve(first + 1e-12 * identity, identity - torch.linalg.matrix_exp(-3 * first))
        expected = query.flatten(1) @ through @ kept
        torch.testing.assert_close(met[0][name].flatten(1), expected, rtol=1e-6, atol=1e-6)  # H^-1 with 1e-12 added


def test_influence_takes_the_mean_gradient_of_each_segments_checkpoints() -> None:
    model, batch = mlp(), points(5)
    later: Batch = (batch[0] * 0.5, batch[1])  # stands for another checkpoint: other gradients of the same points
    met = [per_point_gradients(model, points(4, seed=seed)) for seed in (2, 3)]
    inside = [[loss_factors(model, batch), loss_factors(model, later)], [loss_factors(model, later)]]
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for name in met[0]:
        early, late = (per_point_gradients(model, one)[name].flatten(1) for one in (batch, later))
        expected += (early + late) / 2 @ met[0][name].flatten(1).T / N + late @ met[1][name].flatten(1).T / N
    torch.testing.assert_close(unrolled_influence(inside, met, N), expected, rtol=1e-10, atol=1e-13)  # rounding alone


def test_what_cannot_be_unrolled_is_one_clear_line() -> None:
    model = mlp()
    curvature = ekfac(model, points(N))
    with pytest.raises(InfluenceError, match=r"horizon 0\.0: give the segment's sum of learning rates[^\n]*$"):
        Segment(curvature, 0.0)
    with pytest.raises(InfluenceError, match=r"weight_decay -1: give at least 0$"):
        unroll([Segment(curvature, 1.0)], {}, weight_decay=-1)
    with pytest.raises(InfluenceError, match=r"gradients of x given, a segment was fitted on 0, 2, 4$"):
        unroll([Segment(curvature, 1.0)], {"x": torch.zeros(1, 2, 2)})
    with pytest.raises(InfluenceError, match=r"EKFAC has made 0 of its 2 passes$"):
        unroll([Segment(EKFAC(select(model)), 1.0)], per_point_gradients(model, points(1)))
