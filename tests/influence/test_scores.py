import pytest
import torch
from torch import Tensor, nn

from influence import (
    EKFAC,
    GroupScorer,
    GroupScores,
    InfluenceError,
    Own,
    PairScorer,
    PairScores,
    Reader,
    group_means,
    scores,
    select,
    stratified_error,
    summarize_chunk,
)
from tests.influence.cases import (
    TASK,
    Batch,
    conv_net,
    ekfac,
    fitted,
    images,
    inverse,
    loss_factors,
    mlp,
    over_positions,
    per_point,
    per_point_gradients,
    points,
    query_gradients,
    softmax_regression,
)
from tests.influence.test_queries import confident, margin

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # rounding, float64, scores of order 1

MODELS = {
    "mlp": (mlp(), points(30), points(9, seed=2)),
    "positions": (over_positions(), points(30, positions=4), points(9, positions=4, seed=2)),
    "conv": (conv_net(), images(30), images(9, seed=2)),
}
every_model = pytest.mark.parametrize("case", MODELS)


def pair_scores(case: str, order: Tensor | None = None) -> PairScores:
    """Influence of the 30 points of a case on its 9 queries."""
    model, (x, y), queries = MODELS[case]
    train = (x, y) if order is None else (x[order], y[order])
    return PairScorer(ekfac(model, train), query_gradients(model, queries), 30).score(loss_factors(model, train))


def group_scores(case: str, groups: Tensor, count: int, *, step: bool = False) -> GroupScores:
    model, train, queries = MODELS[case]
    with Reader(model, TASK, select(model)) as reader:
        means = group_means([reader.queries(queries)], groups, count)
    return GroupScorer(ekfac(model, train), means, 30, step=step).score(loss_factors(model, train))


def on_itself(model: nn.Module, train: Batch) -> PairScores:
    scorer = PairScorer(ekfac(model, train), query_gradients(model, train), len(train[0]))
    return scorer.score(loss_factors(model, train))


def pairs_of(rows: list[list[float]]) -> PairScores:
    influence = torch.tensor(rows, dtype=torch.float64)
    return PairScores(influence, 2 * influence, Own(torch.zeros(len(influence), dtype=torch.float64)))


@every_model
def test_influence_is_the_mean_removal_formula_with_the_curvatures_own_inverse(case: str) -> None:
    model, train, queries = MODELS[case]
    curvature, truth, own = ekfac(model, train), torch.zeros(30, 9).double(), torch.zeros(30).double()
    right = per_point_gradients(model, queries)
    for name, g in per_point_gradients(model, train).items():
        h = inverse(curvature, name)
        truth += g.flatten(1) @ h @ right[name].flatten(1).T / 30
        own += ((g.flatten(1) @ h) * g.flatten(1)).sum(1)
    found = pair_scores(case)
    torch.testing.assert_close(found.influence, truth, **EXACT)
    torch.testing.assert_close(found.self_influence, own, **EXACT)


@every_model
def test_classification_influence_is_the_fall_of_the_margin_by_autograd(case: str) -> None:
    model, train, queries = MODELS[case]
    curvature, truth = ekfac(model, train), torch.zeros(30, 9).double()
    right = per_point(model, queries, margin)
    for name, g in per_point_gradients(model, train).items():
        truth -= g.flatten(1) @ inverse(curvature, name) @ right[name].flatten(1).T / 30
    torch.testing.assert_close(pair_scores(case).classification, truth, **EXACT)


@every_model
def test_influence_is_the_doubt_times_classification_influence(case: str) -> None:
    model, _, (x, y) = MODELS[case]
    found, p = pair_scores(case), TASK.logits(model, (x, y)).softmax(1)[torch.arange(9), y]
    torch.testing.assert_close(found.influence, (1 - p) * found.classification, **EXACT)


def test_a_confidently_right_query_has_classification_influence_where_loss_influence_vanishes() -> None:
    model, (x, y) = confident(points(30), 1e-9)
    train = x, (y + torch.arange(30)) % 3  # other labels, so that points have gradients
    scorer = PairScorer(ekfac(model, train), query_gradients(model, (x, y)), 30)
    found = scorer.score(loss_factors(model, train))
    assert found.classification.abs().max() > 0.1
    assert 0 < found.influence.abs().max() < 1e-8 * found.classification.abs().max()


def test_a_copy_of_the_query_helps_and_in_binary_its_flip_harms() -> None:
    # For two classes every gradient is +-(1 - p_y) times one direction, so the sign holds for any positive definite H.
    model, (x, y) = mlp(classes=2), points(30, classes=2)
    scorer = PairScorer(ekfac(model, (x, y)), query_gradients(model, (x, y)), 30)
    for labels, sign in ((y, 1), (1 - y, -1)):
        found = scorer.score(loss_factors(model, (x, labels)))
        assert (sign * found.influence.diagonal() > 0).all()
        assert (sign * found.classification.diagonal() > 0).all()


def test_self_influence_is_n_times_the_influence_of_a_point_on_itself() -> None:
    found = on_itself(*MODELS["mlp"][:2])
    torch.testing.assert_close(found.self_influence, 30 * found.influence.diagonal(), **EXACT)


@every_model
def test_scores_follow_a_permutation_of_the_train_points(case: str) -> None:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    found, whole = pair_scores(case, order), pair_scores(case)
    torch.testing.assert_close(found.influence, whole.influence[order], **EXACT)
    torch.testing.assert_close(found.self_influence, whole.self_influence[order], **EXACT)


@every_model
def test_scores_do_not_depend_on_how_points_are_batched(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y), queries = MODELS[case]
    whole, scorer = pair_scores(case), PairScorer(ekfac(*MODELS[case][:2]), query_gradients(model, queries), 30)
    monkeypatch.setattr("influence.factored.DENSE_ELEMENTS", 100)  # and a few gradients at a time
    parts = [scorer.score(loss_factors(model, (x[rows], y[rows]))) for rows in torch.arange(30).split(7)]
    torch.testing.assert_close(torch.cat([part.influence for part in parts]), whole.influence, **EXACT)
    torch.testing.assert_close(torch.cat([part.self_influence for part in parts]), whole.self_influence, **EXACT)


@every_model
def test_a_duplicated_point_gets_the_scores_of_its_twin(case: str) -> None:
    model, (x, y), queries = MODELS[case]
    train = torch.cat([x, x[3:4]]), torch.cat([y, y[3:4]])
    scorer = PairScorer(ekfac(model, train), query_gradients(model, queries), 31)
    found = scorer.score(loss_factors(model, train))
    torch.testing.assert_close(found.influence[30], found.influence[3], **EXACT)
    torch.testing.assert_close(found.self_influence[30], found.self_influence[3], **EXACT)


@every_model
def test_a_point_outside_the_train_set_is_scored_against_the_curvature_of_the_others(case: str) -> None:
    model, (x, y), queries = MODELS[case]
    weights = (torch.arange(30) % 3 > 0).float()
    inside = weights.bool()
    curvature = EKFAC(select(model))
    fitted(curvature, model, (x, y), weights=weights)
    against = query_gradients(model, queries)
    found = PairScorer(curvature, against, 20).score(loss_factors(model, (x, y)))
    others = ekfac(model, (x[inside], y[inside]))
    truth = PairScorer(others, against, 20).score(loss_factors(model, (x[~inside], y[~inside])))
    torch.testing.assert_close(found.influence[~inside], truth.influence, **EXACT)
    assert (found.self_influence > 0).all()


@every_model
def test_influence_on_a_group_is_the_mean_of_the_pairs(case: str) -> None:
    groups = torch.tensor([2, 0, 2, 0, 2, 2, 0, 0, 3])
    found, pairs = group_scores(case, groups, 4, step=True), pair_scores(case)
    for group in (0, 2, 3):
        truth = pairs.influence[:, groups == group].mean(1)
        torch.testing.assert_close(found.influence[:, group], truth, **EXACT)
    assert found.influence[:, 1].isnan().all()  # no query
    torch.testing.assert_close(found.mean, pairs.influence.mean(1), **EXACT)
    torch.testing.assert_close(found.own.self_influence, pairs.self_influence, **EXACT)
    torch.testing.assert_close(found.own.squared_step, pairs.own.squared_step, **EXACT)


@every_model
def test_the_mean_is_that_of_all_groups_weighted_by_their_queries(case: str) -> None:
    groups = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2, 2])
    found = group_scores(case, groups, 3)
    torch.testing.assert_close(found.mean, found.influence @ torch.tensor([1, 2, 6]).double() / 9, **EXACT)
    assert found.own.squared_step is None  # nobody asked for it


@every_model
def test_groups_of_labels_are_the_per_class_matrix(case: str) -> None:
    labels = MODELS[case][2][1]
    summary = summarize_chunk(pair_scores(case), labels, classes=3)
    torch.testing.assert_close(group_scores(case, labels, 3).influence, summary.by_class, **EXACT)


def test_a_fitted_models_influences_add_up_as_stationarity_says() -> None:
    # grad J = 0: the mean loss gradient is -l2 theta, so both sums of T = (1/n) G H^-1 G' are known.
    problem = softmax_regression()
    train = query_gradients(problem.model, problem.train)
    scorer = PairScorer(problem.curvature(), train, len(problem.train[0]))
    found = scorer.score(loss_factors(problem.model, problem.train)).influence
    theta = torch.cat([problem.model.weight, problem.model.bias[:, None]], 1).detach()
    pull = problem.curvature().solve({"model": theta[None]})["model"].flatten()
    g = per_point_gradients(problem.model, problem.train)["model"].flatten(1)
    torch.testing.assert_close(found.sum(1), -problem.l2 * g @ pull, **EXACT)  # over queries that are the train set
    torch.testing.assert_close(found.sum(0), -problem.l2 * g @ pull, **EXACT)  # over the points, for every query


def test_points_below_one_are_refused() -> None:
    model, train, queries = MODELS["mlp"]
    with pytest.raises(InfluenceError, match="0 train points"):
        PairScorer(ekfac(model, train), query_gradients(model, queries), 0)


def test_checkpoints_are_added_before_anything_is_averaged() -> None:
    first, second = pairs_of([[1.0, -3.0, 2.0]]), pairs_of([[-1.0, 1.0, 2.0]])
    found = summarize_chunk(first + second, torch.tensor([0, 0, 0]), classes=1, top=1)
    assert found.influence.item() == pytest.approx(2 / 3)  # of (0, -2, 4)
    assert found.influence_se.item() == pytest.approx((28 / 3 / 3) ** 0.5)  # variance 28/3, 3 queries
    assert (found.helpful.index.item(), found.helpful.influence.item()) == (2, 4.0)
    assert (found.harmful.index.item(), found.harmful.influence.item()) == (1, -2.0)
    assert found.classification_influence.item() == pytest.approx(4 / 3)


def test_own_terms_of_checkpoints_are_added() -> None:
    first, second = pair_scores("mlp"), pair_scores("mlp")
    added = (first + second).own
    torch.testing.assert_close(added.self_influence, 2 * first.self_influence, **EXACT)
    torch.testing.assert_close(added.squared_step, 2 * first.own.squared_step, **EXACT)


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
