"""What dense, dual and conjugate gradients have in common: they solve the same equations."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from influence import (
    EKFAC,
    AllReduce,
    Blocks,
    Curvature,
    Damping,
    Factor,
    Factors,
    GaussNewton,
    InfluenceError,
    Share,
    alone,
    last,
    materialise,
    select,
)
from influence.curvature.dual import DualGaussNewton
from influence.curvature.identity import Identity
from influence.curvature.iterative import PCG
from influence.curvature.joint import Joint
from influence.curvature.sweep import damping_sweep
from tests.influence.cases import (
    ABSOLUTE,
    conv_net,
    fitted,
    images,
    label_gradients,
    loss_factors,
    mlp,
    normed,
    on_two_ranks,
    over_positions,
    per_point_gradients,
    points,
)

ROUNDING = {"rtol": 1e-10, "atol": 1e-9}  # float64; inverses of order 100 of matrices of order 200

MODELS = {
    "mlp": (mlp(), points(30)),
    "positions": (over_positions(), points(30, positions=4)),
    "conv": (conv_net(), images(30)),
    "norm": (normed(), points(30)),
}
SOLVERS: dict[str, Callable[[Blocks, Share], Curvature]] = {
    "dense": lambda blocks, share: GaussNewton(blocks),
    "dual": DualGaussNewton,
    "cg": lambda blocks, share: PCG(blocks, Identity(blocks), share, tolerance=1e-12, limit=1000),
    "ekfac cg": lambda blocks, share: PCG(blocks, EKFAC(blocks, share), share, tolerance=1e-12, limit=1000),
    "dual cg": lambda blocks, share: PCG(blocks, DualGaussNewton(blocks, share, 0.1), share, tolerance=1e-12),
}
every_model = pytest.mark.parametrize("case", MODELS)
every_solver = pytest.mark.parametrize("kind", SOLVERS)


def solver(kind: str, case: str, damping: Damping = ABSOLUTE, **how: object) -> Curvature:
    """Fitted on all blocks of a case."""
    model, batch = MODELS[case]
    curvature = SOLVERS[kind](select(model), Share())
    fitted(curvature, model, batch, damping, **how)  # type: ignore[arg-type]
    return curvature


@cache
def matrix(case: str) -> Tensor:
    """The joint Gauss-Newton matrix by torch.func, [p, p]."""
    model, batch = MODELS[case]
    rows = torch.cat([one.flatten(2) for one in label_gradients(model, batch).values()], 2).flatten(0, 1)
    return rows.T @ rows / len(batch[0])


def damped_inverse(case: str, damping: float = ABSOLUTE.value) -> Tensor:
    full = matrix(case)
    return torch.linalg.inv(full + damping * torch.eye(len(full), dtype=full.dtype))


def inverse(curvature: Curvature, case: str) -> Tensor:
    """What a curvature takes for it, [p, p]."""
    joint = Joint.of(select(MODELS[case][0]))
    return joint.join(curvature.solve(joint.split(torch.eye(joint.parameters, dtype=torch.float64))))


def spread(eigenvalues: Tensor) -> tuple[Blocks, Factors]:
    """A block [1, i] and roots of n points, whose Gauss-Newton matrix is diagonal with n given eigenvalues."""
    count = len(eigenvalues)
    a = torch.diag((count * eigenvalues).sqrt())[:, None, :]  # [n, 1, n]
    a = torch.cat([a, a.new_zeros(count, 1, 1)], 2)  # and one direction without curvature
    blocks = select(nn.Linear(count + 1, 1, bias=False))
    return blocks, {blocks[0].name: Factor(a, torch.ones(1, count, 1, 1, dtype=torch.float64))}


@every_model
@every_solver
def test_solve_is_the_inverse_of_the_joint_gauss_newton_matrix(kind: str, case: str) -> None:
    torch.testing.assert_close(inverse(solver(kind, case), case), damped_inverse(case), **ROUNDING)


@every_model
@every_solver
def test_own_terms_and_scores_are_those_of_dense_algebra(kind: str, case: str) -> None:
    model, batch = MODELS[case]
    g = torch.cat([one.flatten(1) for one in per_point_gradients(model, batch).values()], 1)  # [B, p]
    moved, factors = g @ damped_inverse(case), loss_factors(model, batch)
    queries = {name: materialise(factor)[:7] for name, factor in factors.items()}
    curvature = solver(kind, case)
    scored = curvature.against(queries, own=True, step=True).score(factors)
    assert scored.own is not None
    assert scored.own.squared_step is not None
    torch.testing.assert_close(scored.dots, moved @ g[:7].T, **ROUNDING)
    torch.testing.assert_close(scored.own.self_influence, (moved * g).sum(1), **ROUNDING)
    torch.testing.assert_close(scored.own.squared_step, moved.square().sum(1), rtol=1e-8, atol=1e-8)  # of order 1e3
    assert curvature.own(factors).squared_step is None


@every_solver
def test_solve_is_repeatable_and_leaves_its_argument_alone(kind: str) -> None:
    curvature, joint = solver(kind, "mlp"), Joint.of(select(MODELS["mlp"][0]))
    v = joint.probe(3)
    given = joint.split(v.clone())
    first = joint.join(curvature.solve(given))
    curvature.own(loss_factors(*MODELS["mlp"]))
    curvature.diagnostics()
    assert joint.join(curvature.solve(given)).equal(first)
    assert joint.join(given).equal(v)


@every_solver
def test_solutions_come_in_the_dtype_of_the_gradients(kind: str) -> None:
    curvature, joint = solver(kind, "mlp"), Joint.of(select(MODELS["mlp"][0]))
    given = {name: one.float() for name, one in joint.split(joint.probe()).items()}
    assert {one.dtype for one in curvature.solve(given).values()} == {torch.float32}


@every_model
@every_solver
def test_points_of_weight_zero_do_not_enter(kind: str, case: str) -> None:
    model, (x, y) = MODELS[case]
    weights = (torch.arange(30) % 3 > 0).float()
    absent = SOLVERS[kind](select(model), Share())
    fitted(absent, model, (x[weights > 0], y[weights > 0]))
    masked = solver(kind, case, weights=weights, size=1)  # of one point: batches that hold nothing are among them
    torch.testing.assert_close(inverse(masked, case), inverse(absent, case), **ROUNDING)


@every_model
@every_solver
@pytest.mark.parametrize("arrange", [lambda x: x.flip(0), lambda x: x], ids=["reversed", "small batches"])
def test_the_solution_does_not_depend_on_batch_size_or_order(
    kind: str, case: str, arrange: Callable[[Tensor], Tensor]
) -> None:
    model, (x, y) = MODELS[case]
    pieces = SOLVERS[kind](select(model), Share())
    fitted(pieces, model, (arrange(x), arrange(y)), size=7)
    torch.testing.assert_close(inverse(pieces, case), inverse(solver(kind, case), case), **ROUNDING)


@every_solver
@pytest.mark.parametrize("size", [7, 1000], ids=["both have points", "one has none"])
def test_two_ranks_that_share_the_batches_have_the_solution_of_one(kind: str, size: int) -> None:
    model, batch = MODELS["mlp"]
    copies = deepcopy(model), deepcopy(model)

    def program(share: Share, all_reduce: AllReduce) -> Curvature:
        mine = copies[share.rank]
        curvature = SOLVERS[kind](select(mine), share)
        fitted(curvature, mine, batch, size=size, share=share, all_reduce=all_reduce)
        return curvature

    first, second = on_two_ranks(program)
    assert inverse(first, "mlp").equal(inverse(second, "mlp"))
    torch.testing.assert_close(inverse(first, "mlp"), inverse(solver(kind, "mlp"), "mlp"), **ROUNDING)


@every_solver
def test_batches_may_differ_in_roots_and_positions(kind: str) -> None:
    generator, blocks = torch.Generator().manual_seed(0), select(mlp())

    def draw(roots: int, count: int, positions: int) -> Factors:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        shapes = {block.name: block.weight_shape for block in blocks}
        return {
            name: Factor(normal(count, positions, i), normal(roots, count, positions, o))
            for name, (o, i) in shapes.items()
        }

    batches = [draw(2, 5, 3), draw(4, 6, 1), draw(1, 3, 2)]
    curvature, joint = SOLVERS[kind](blocks, Share()), Joint.of(blocks)
    for _ in range(curvature.passes):
        for batch in batches:
            curvature.accumulate(batch, torch.ones(len(batch["0"])))
        curvature.reduce(alone)
    curvature.finish(Damping("absolute", 1.0))
    rows = torch.cat([joint.materialise(batch).flatten(0, 1) for batch in batches])
    v = joint.probe(3)
    damped = rows.T @ rows / 14 + torch.eye(joint.parameters, dtype=torch.float64)
    torch.testing.assert_close(
        joint.join(curvature.solve(joint.split(v))), torch.linalg.solve(damped, v.T).T, **ROUNDING
    )


@every_solver
def test_heavy_damping_gives_the_inner_products_of_gradients(kind: str) -> None:
    model, batch = MODELS["mlp"]
    factors, heavy = loss_factors(model, batch), Damping("absolute", 1e9)
    queries = {name: materialise(factor)[:5] for name, factor in factors.items()}
    plain = Identity(select(model))
    plain.finish(Damping("absolute", 1.0))
    expected = plain.against(queries, own=True).score(factors)
    found = solver(kind, "mlp", heavy).against(queries, own=True).score(factors)
    assert found.own is not None
    assert expected.own is not None
    # The matrix is of order 10, so it moves the result in the eighth digit.
    torch.testing.assert_close(found.dots * 1e9, expected.dots, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.own.self_influence * 1e9, expected.own.self_influence, rtol=1e-6, atol=1e-6)


@every_solver
def test_a_sweep_measures_what_separate_fits_do_and_leaves_the_last_damping(kind: str) -> None:
    dampings = [Damping("absolute", 1.0), Damping("mean_eig", 0.1), Damping("horizon", 50.0, weight_decay=0.01)]
    curvature = solver(kind, "mlp")
    swept = damping_sweep(curvature, dampings, lambda one: inverse(one, "mlp"))
    assert [point.damping for point in swept] == dampings
    for point in swept:
        torch.testing.assert_close(point.measured, inverse(solver(kind, "mlp", point.damping), "mlp"), **ROUNDING)
    assert inverse(curvature, "mlp").equal(swept[-1].measured)
    assert damping_sweep(curvature, [], lambda one: one) == ()


@every_solver
def test_mean_eig_damping_is_relative_to_the_mean_eigenvalue_of_all_blocks(kind: str) -> None:
    if kind == "dual cg":
        kind = "dual"  # whose own trace is that of the whole matrix
    (found,) = solver(kind, "mlp", Damping("mean_eig", 0.1)).diagnostics().values()
    full = matrix("mlp")
    assert found.damping == pytest.approx(0.1 * float(full.trace()) / len(full), rel=1e-12)


@every_solver
def test_diagnostics_are_right_on_a_known_spectrum(kind: str) -> None:
    eigenvalues = torch.tensor([8.0, 2.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    blocks, roots = spread(eigenvalues)
    curvature = SOLVERS[kind](blocks, Share())
    for _ in range(curvature.passes):
        curvature.accumulate(roots, torch.ones(5))
        curvature.reduce(alone)
    curvature.finish(Damping("absolute", 0.1))
    (found,) = curvature.diagnostics().values()
    assert found.residual <= 1e-12
    assert found.damping == 0.1
    # The probes of the trace are exact where the matrix is diagonal.
    assert found.effective_dimension == pytest.approx(float((eigenvalues / (eigenvalues + 0.1)).sum()), rel=1e-9)
    assert found.condition == pytest.approx(81.0, rel=1e-9)


@every_model
@every_solver
def test_diagnostics_are_those_of_the_joint_matrix(kind: str, case: str) -> None:
    eigenvalues = torch.linalg.eigvalsh(matrix(case)).clamp(min=0)
    (found,) = solver(kind, case).diagnostics().values()
    dimension = float((eigenvalues / (eigenvalues + ABSOLUTE.value)).sum())
    assert found.residual <= 1e-12
    spread_of_estimate = 3 * (dimension / 8) ** 0.5 if "cg" in kind else 1e-9  # three standard errors of 16 probes
    assert found.effective_dimension == pytest.approx(dimension, abs=spread_of_estimate)
    # Softmax is singular, so the smallest damped eigenvalue is the damping.
    assert found.condition == pytest.approx(float(eigenvalues[-1]) / ABSOLUTE.value + 1, rel=1e-6)


@every_solver
def test_self_influence_grows_with_the_block(kind: str) -> None:
    model, batch = MODELS["mlp"]
    found = []
    for count in (1, 2, 3):
        blocks = select(model, last(count))
        curvature = SOLVERS[kind](blocks, Share())
        fitted(curvature, model, batch)
        found.append(curvature.own(loss_factors(model, batch, blocks)).self_influence)
    assert (found[0] >= 0).all()
    assert (found[1] >= found[0]).all()
    assert (found[2] >= found[1]).all()


@every_solver
def test_what_a_block_leaves_out_is_the_schur_complements_term(kind: str) -> None:
    # g' H^-1 g = g_S' H_SS^-1 g_S + r' K^-1 r, r = g_T - H_TS H_SS^-1 g_S, K = H_TT - H_TS H_SS^-1 H_ST; S the head.
    model, batch = MODELS["mlp"]
    head = select(model, last(1))
    curvature = SOLVERS[kind](head, Share())
    fitted(curvature, model, batch)
    of_head = curvature.own(loss_factors(model, batch, head)).self_influence
    of_all = solver(kind, "mlp").own(loss_factors(model, batch)).self_influence
    g = torch.cat([one.flatten(1) for one in per_point_gradients(model, batch).values()], 1)
    damped = matrix("mlp") + ABSOLUTE.value * torch.eye(g.shape[1], dtype=g.dtype)
    t = g.shape[1] - head[0].parameters
    ratio = torch.linalg.solve(damped[t:, t:], damped[t:, :t])  # H_SS^-1 H_ST
    rest = g[:, :t] - g[:, t:] @ ratio
    complement = damped[:t, :t] - damped[:t, t:] @ ratio
    torch.testing.assert_close(of_all - of_head, (rest @ torch.linalg.inv(complement) * rest).sum(1), **ROUNDING)


@every_solver
def test_a_step_out_of_order_is_refused(kind: str) -> None:
    model, batch = MODELS["mlp"]
    blocks = select(model)
    zeros = Joint.of(blocks).split(torch.zeros(1, 79, dtype=torch.float64))
    curvature = SOLVERS[kind](blocks, Share())
    with pytest.raises(InfluenceError, match="not been reduced"):
        curvature.finish(ABSOLUTE)
    with pytest.raises(InfluenceError, match="no damping yet: call finish"):
        curvature.solve(zeros)
    with pytest.raises(InfluenceError, match="no point of weight 1"):
        curvature.reduce(alone)
    done = solver(kind, "mlp")
    with pytest.raises(InfluenceError, match="only pass"):
        done.accumulate(
            {name: Factor(f.a, f.g[None]) for name, f in loss_factors(model, batch).items()}, torch.ones(30)
        )
    with pytest.raises(InfluenceError, match="blocks 0, 2 given, the curvature is that of 0, 2, 4"):
        done.solve({name: zeros[name] for name in ("0", "2")})


@every_solver
def test_the_curvature_names_its_blocks(kind: str) -> None:
    curvature = solver(kind, "mlp")
    assert curvature.blocks == ("0", "2", "4")
    assert list(curvature.diagnostics()) == ["0+2+4"]


def test_dual_and_dense_agree_to_rounding() -> None:
    dense, dual = (inverse(solver(kind, "conv"), "conv") for kind in ("dense", "dual"))
    assert float((dual - dense).norm() / dense.norm()) < 1e-10
