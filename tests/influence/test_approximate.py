"""What Arnoldi, LiSSA, DataInf and the diagonal have in common: each solves with one symmetric matrix of its own."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from influence import (
    AllReduce,
    Blocks,
    Curvature,
    Damping,
    Factor,
    Identity,
    InfluenceError,
    Share,
    alone,
    damping_sweep,
    materialise,
    select,
)
from influence.curvature.arnoldi import Arnoldi
from influence.curvature.joint import Joint
from tests.influence.cases import ABSOLUTE, fitted, loss_factors, on_two_ranks, per_point_gradients
from tests.influence.test_exact import MODELS, inverse
from tests.left_out.datainf import DataInf
from tests.left_out.diagonal import Diagonal
from tests.left_out.lissa import LiSSA

ROUNDING = {"rtol": 1e-9, "atol": 1e-8}  # float64; inverses of order 100, and Ritz vectors of clustered eigenvalues

SOLVERS: dict[str, Callable[[Blocks, Share], Curvature]] = {
    "arnoldi": lambda blocks, share: Arnoldi(blocks, 10, share=share),
    "published arnoldi": lambda blocks, share: Arnoldi(blocks, 10, complement=False, share=share),
    "lissa": lambda blocks, share: LiSSA(blocks, 50, share),
    "datainf": DataInf,
    "diagonal": lambda blocks, share: Diagonal(blocks),
}
every_model = pytest.mark.parametrize("case", ["mlp", "positions", "conv"])
every_solver = pytest.mark.parametrize("kind", SOLVERS)


def solver(kind: str, case: str, damping: Damping = ABSOLUTE, **how: object) -> Curvature:
    """Fitted on all blocks of a case."""
    model, batch = MODELS[case]
    curvature = SOLVERS[kind](select(model), Share())
    fitted(curvature, model, batch, damping, **how)  # type: ignore[arg-type]
    return curvature


@every_model
@every_solver
def test_own_terms_and_scores_are_those_of_the_matrix_it_solves_with(kind: str, case: str) -> None:
    model, batch = MODELS[case]
    curvature = solver(kind, case)
    solves = inverse(curvature, case)
    torch.testing.assert_close(solves, solves.T, **ROUNDING)
    g = torch.cat([one.flatten(1) for one in per_point_gradients(model, batch).values()], 1)  # [B, p]
    moved, factors = g @ solves, loss_factors(model, batch)
    queries = {name: materialise(factor)[:7] for name, factor in factors.items()}
    scored = curvature.against(queries, own=True, step=True).score(factors)
    assert scored.own is not None
    assert scored.own.squared_step is not None
    torch.testing.assert_close(scored.dots, moved @ g[:7].T, **ROUNDING)
    torch.testing.assert_close(scored.own.self_influence, (moved * g).sum(1), **ROUNDING)
    torch.testing.assert_close(scored.own.squared_step, moved.square().sum(1), rtol=1e-8, atol=1e-7)  # of order 1e3
    assert (scored.own.self_influence >= 0).all()
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
    given = joint.probe()
    single = curvature.solve({name: one.float() for name, one in joint.split(given).items()})
    assert {one.dtype for one in single.values()} == {torch.float32}
    double = joint.join(curvature.solve(joint.split(given)))
    assert (joint.join(single) - double).norm() < 1e-4 * double.norm()  # 1e-7 times a condition of 1e3


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


@pytest.mark.parametrize("kind", [kind for kind in SOLVERS if kind != "published arnoldi"])
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
def test_a_sweep_measures_what_separate_fits_do(kind: str) -> None:
    dampings = [Damping("absolute", 1.0), Damping("mean_eig", 0.1), Damping("horizon", 50.0, weight_decay=0.01)]
    swept = damping_sweep(solver(kind, "mlp"), dampings, lambda one: inverse(one, "mlp"))
    for point in swept:
        torch.testing.assert_close(point.measured, inverse(solver(kind, "mlp", point.damping), "mlp"), **ROUNDING)


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
    assert done.blocks == ("0", "2", "4")
    with pytest.raises(InfluenceError, match="only pass"):
        done.accumulate(
            {name: Factor(f.a, f.g[None]) for name, f in loss_factors(model, batch).items()}, torch.ones(30)
        )
