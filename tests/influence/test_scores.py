import pytest
import torch
from torch import Tensor

from influence import (
    Damping,
    InfluenceError,
    PairScores,
    Scorer,
    materialise,
    scores,
    stratified_error,
    summarize_chunk,
)
from tests.influence.cases import (
    ABSOLUTE,
    Batch,
    ekfac,
    head_curvature,
    loss_factors,
    mlp,
    over_positions,
    points,
    read_head,
    softmax_regression,
)

MODELS = {"mlp": (mlp(), points(30)), "positions": (over_positions(), points(30, positions=4))}
every_model = pytest.mark.parametrize("case", MODELS)


def pair_scores(case: str, order: Tensor | None = None) -> PairScores:
    """Influence of the 30 points of a case on 9 queries."""
    model, (x, y) = MODELS[case]
    order = torch.arange(30) if order is None else order
    train = x[order], y[order]
    queries = points(9, positions=None if case == "mlp" else 4, seed=2)
    scorer = Scorer(ekfac(model, train), points=30, queries=9)
    for rows in (slice(0, 4), slice(4, 9)):
        scorer.add_queries(loss_factors(model, (queries[0][rows], queries[1][rows])))
    return scorer.score(loss_factors(model, train))


def pairs_of(rows: list[list[float]]) -> PairScores:
    influence = torch.tensor(rows, dtype=torch.float64)
    return PairScores(influence, torch.zeros(len(influence), dtype=torch.float64))


@every_model
def test_influence_is_the_mean_removal_formula_with_the_curvatures_own_inverse(case: str) -> None:
    model, train = MODELS[case]
    queries = points(9, positions=None if case == "mlp" else 4, seed=2)
    curvature, truth, own = ekfac(model, train), torch.zeros(30, 9).double(), torch.zeros(30).double()
    right = loss_factors(model, queries)
    for name, factor in loss_factors(model, train).items():
        g = materialise(factor)
        truth += g.flatten(1) @ curvature.solve(name, materialise(right[name])).flatten(1).T / 30
        own += (g * curvature.solve(name, g)).sum((1, 2))
    found = pair_scores(case)
    torch.testing.assert_close(found.influence, truth, rtol=0, atol=1e-10)  # rounding, float64
    torch.testing.assert_close(found.self_influence, own, rtol=1e-10, atol=0)


def test_a_copy_of_the_query_helps_and_in_binary_its_flip_harms() -> None:
    # For two classes every gradient is +-(1 - p_y) times one direction, so the sign holds for any positive definite H.
    model, (x, y) = mlp(classes=2), points(30, classes=2)
    scorer = Scorer(ekfac(model, (x, y)), points=30, queries=30)
    scorer.add_queries(loss_factors(model, (x, y)))
    assert (scorer.score(loss_factors(model, (x, y))).influence.diagonal() > 0).all()
    assert (scorer.score(loss_factors(model, (x, 1 - y))).influence.diagonal() < 0).all()


def test_the_head_has_the_same_signs() -> None:
    problem = softmax_regression(n=60, m=20)
    scorer = Scorer(problem.curvature(), points=60, queries=20)
    copies = read_head(problem.model, problem.queries).loss_factors(problem.queries[1])
    scorer.add_queries(copies)
    assert (scorer.score(copies).influence.diagonal() > 0).all()


@every_model
def test_self_influence_is_not_negative(case: str) -> None:
    assert (pair_scores(case).self_influence >= 0).all()


def test_self_influence_is_n_times_the_influence_of_a_point_on_itself() -> None:
    model, train = MODELS["mlp"]
    scorer = Scorer(ekfac(model, train), points=30, queries=30)
    scorer.add_queries(loss_factors(model, train))
    found = scorer.score(loss_factors(model, train))
    torch.testing.assert_close(found.self_influence, 30 * found.influence.diagonal())


@every_model
def test_scores_follow_a_permutation_of_the_train_points(case: str) -> None:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    found, whole = pair_scores(case, order), pair_scores(case)
    torch.testing.assert_close(found.influence, whole.influence[order], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.self_influence, whole.self_influence[order], rtol=1e-10, atol=0)


@every_model
def test_slices_of_a_chunk_score_as_the_chunk(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pair_scores(case)
    monkeypatch.setattr(scores, "DENSE_ELEMENTS", 100)  # a few rows at a time
    torch.testing.assert_close(pair_scores(case).influence, whole.influence, rtol=0, atol=1e-12)


def test_more_damping_lowers_every_self_influence() -> None:
    model, train = MODELS["mlp"]

    def own(batch: Batch, damping: Damping) -> Tensor:
        scorer = Scorer(ekfac(model, batch, damping), points=30, queries=30)
        scorer.add_queries(loss_factors(model, batch))
        return scorer.score(loss_factors(model, batch)).self_influence

    assert (own(train, Damping("absolute", 0.1)) < own(train, ABSOLUTE)).all()


def test_checkpoints_are_added_before_anything_is_averaged() -> None:
    first, second = pairs_of([[1.0, -3.0, 2.0]]), pairs_of([[-1.0, 1.0, 2.0]])
    found = summarize_chunk(first + second, torch.tensor([0, 0, 0]), classes=1, top=1)
    assert found.influence.item() == pytest.approx(2 / 3)  # of (0, -2, 4)
    assert found.influence_se.item() == pytest.approx((28 / 3 / 3) ** 0.5)  # variance 28/3, 3 queries
    assert (found.helpful.index.item(), found.helpful.influence.item()) == (2, 4.0)
    assert (found.harmful.index.item(), found.harmful.influence.item()) == (1, -2.0)


def test_class_means_are_over_the_queries_of_that_label() -> None:
    found = summarize_chunk(pairs_of([[1.0, 2.0, 3.0, 6.0]]), torch.tensor([2, 0, 2, 0]), classes=3)
    assert found.by_class[0, [0, 2]].tolist() == [4.0, 2.0]
    assert found.by_class[0, 1].isnan()  # no query of class 1
    assert found.influence.item() == 3.0


def test_the_standard_error_is_the_spread_of_the_mean_over_redrawn_queries() -> None:
    # Queries redrawn within two classes of very different means; the estimate averaged over draws against the truth.
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 30 + [1] * 10)
    shift, scale = torch.tensor([5.0, -5.0]).double()[labels], torch.tensor([1.0, 3.0]).double()[labels]
    draws = shift + scale * torch.randn(4000, 40, generator=generator, dtype=torch.float64)
    truth = draws.mean(1).std().item()
    # 4,000 draws: the truth is known to 1.1 %, the mean estimate better.
    assert scores.stratified_error(draws, labels).square().mean().sqrt().item() == pytest.approx(truth, rel=0.04)


def test_classes_of_one_query_share_a_stratum_and_a_lone_one_joins_the_smallest_class() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, 9.0, 7.0]], dtype=torch.float64)
    two_singles = stratified_error(values, torch.tensor([0, 0, 1, 2, 3, 3]))
    assert two_singles.equal(stratified_error(values, torch.tensor([0, 0, 1, 1, 3, 3])))
    lone = stratified_error(values, torch.tensor([0, 0, 0, 5, 3, 3]))
    assert lone.equal(stratified_error(values, torch.tensor([0, 0, 0, 3, 3, 3])))
    assert lone.isfinite().all()


def test_a_single_query_has_no_standard_error() -> None:
    with pytest.raises(InfluenceError, match="at least two"):
        summarize_chunk(pairs_of([[1.0]]), torch.tensor([0]), classes=1)


def test_top_queries_have_their_sign_and_are_absent_where_there_are_too_few() -> None:
    found = summarize_chunk(pairs_of([[3.0, -1.0, 0.0, 2.0]]), torch.tensor([0, 0, 0, 0]), classes=1, top=3)
    assert found.helpful.index.tolist() == [[0, 3, -1]]
    assert found.harmful.index.tolist() == [[1, -1, -1]]
    assert found.harmful.influence[0, 0] == -1.0
    assert found.harmful.influence[0, 1:].isnan().all()


def test_queries_and_blocks_must_be_those_announced() -> None:
    problem = softmax_regression(n=60, m=20)
    scorer = Scorer(head_curvature(problem.model, problem.train, ABSOLUTE), points=60, queries=20)
    factors = read_head(problem.model, problem.queries).loss_factors(problem.queries[1])
    with pytest.raises(InfluenceError, match="0 queries given, 20 announced"):
        scorer.score(factors)
    scorer.add_queries(factors)
    with pytest.raises(InfluenceError, match="40 queries given"):
        scorer.add_queries(factors)
    with pytest.raises(InfluenceError, match=r"blocks \['other'\] given"):
        scorer.score({"other": factors[""]})
    with pytest.raises(InfluenceError, match="at least one of each"):
        Scorer(problem.curvature(), points=0, queries=1)
