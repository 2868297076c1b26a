"""Tables too large for one-hot inputs: the same gradients and scores, at a cost that does not grow with the table."""

import io

import pytest
import torch
from torch import Tensor, nn

from influence import (
    EKFAC,
    KFAC,
    PCG,
    Arnoldi,
    Blocks,
    Curvature,
    Damping,
    DualGaussNewton,
    FactorCache,
    Factors,
    GaussNewton,
    Identity,
    Influence,
    InfluenceError,
    PairScorer,
    PairScores,
    Queries,
    Reader,
    Task,
    alone,
    each,
    factor_mask,
    influence_step,
    layouts,
    materialise,
    move,
    select,
    share_queries,
    summed,
)
from influence.layouts import EmbeddingLayout, TableLayout
from influence.sparse import TableFactor
from tests.influence.cases import split
from tests.influence.layers import dense, per_point, pulled
from tests.influence.test_exchange import on_ranks

EXACT = 1e-10  # float64; gradients and scores are of order 1
ROWS, CLASSES, POINTS, QUERIES = 5000, 3, 30, 9
Batch = tuple[Tensor, Tensor]
TASK: Task[Batch] = Task(lambda model, batch: model(batch[0]), lambda batch: batch[1])
ABSOLUTE = Damping("absolute", 0.05)


class Recommender(nn.Module):
    """Users, and the items that they had before, padded with 0; a small tower."""

    def __init__(self, rows: int = ROWS) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(rows, 4), nn.Embedding(rows, 3, padding_idx=0)
        self.tower = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, CLASSES))

    def forward(self, ids: Tensor) -> Tensor:
        items = self.items(ids[:, 1:]).tanh().sum(1)
        return self.tower(torch.cat([self.users(ids[:, 0]), items], 1))


def recommender(rows: int = ROWS) -> Recommender:
    torch.manual_seed(0)
    return Recommender(rows).double().eval()


def drawn(count: int, *, repeats: bool, seed: int = 1) -> Batch:
    """Points of five items, some of which are padding; with `repeats`, some point has an item twice."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(8, (count, 1), generator=generator)
    items = torch.stack([torch.randperm(11, generator=generator)[:5] for _ in range(count)])
    items[::3, 3:] = 0
    if repeats:
        items[1::2, 4] = items[1::2, 0]
    return torch.cat([users, items], 1), torch.randint(CLASSES, (count,), generator=generator)


def one_hot(model: nn.Module) -> Blocks:
    """The blocks as they are of small tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "LARGEST_FREE", ROWS)
        return select(model)


def scored(blocks: Blocks, curvature: Curvature, model: nn.Module, cache: FactorCache | None = None) -> PairScores:
    train, queries = drawn(POINTS, repeats=False), drawn(QUERIES, repeats=False, seed=2)
    with Influence(model, TASK, curvature, blocks, cache=cache) as influence:
        influence.fit(split(train, 7), ABSOLUTE)
        return influence.pairs(split(train, 7), split(queries, 4))


def assert_same(found: PairScores, truth: PairScores) -> None:
    assert truth.influence.abs().max() > 1e-4
    for name in ("influence", "classification", "self_influence"):
        torch.testing.assert_close(getattr(found, name), getattr(truth, name), rtol=0, atol=EXACT)
    assert found.own.squared_step is not None
    assert truth.own.squared_step is not None
    torch.testing.assert_close(found.own.squared_step, truth.own.squared_step, rtol=1e-10, atol=EXACT)


def test_which_tables_are_large() -> None:
    assert [type(block.layout) for block in select(recommender())[:2]] == [TableLayout] * 2
    assert [type(block.layout) for block in one_hot(recommender())[:2]] == [EmbeddingLayout] * 2


@pytest.mark.parametrize("name", ["users", "items"])
def test_factors_of_a_large_table_are_per_point_gradients(name: str) -> None:
    model, batch = recommender(), drawn(POINTS, repeats=True)
    (block,) = [block for block in select(model) if block.name == name]
    factor = pulled(model, batch)[name]
    assert isinstance(factor, TableFactor)
    torch.testing.assert_close(dense(factor), per_point(model, block, batch), rtol=0, atol=EXACT)
    torch.testing.assert_close(dense(factor[3:7]), dense(factor)[3:7], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [EKFAC, KFAC, Identity])
def test_scores_are_those_of_the_one_hot_form(kind: type[EKFAC]) -> None:
    model = recommender()
    blocks, small = select(model), one_hot(model)
    assert_same(scored(blocks, kind(blocks), model), scored(small, kind(small), model))


@pytest.mark.parametrize("kind", [EKFAC, Identity])
def test_scores_on_groups_are_those_of_the_one_hot_form(kind: type[EKFAC]) -> None:
    model = recommender()
    train, queries = drawn(POINTS, repeats=False), drawn(QUERIES, repeats=False, seed=2)
    found = []
    for blocks in (select(model), one_hot(model)):
        with Influence(model, TASK, kind(blocks), blocks) as influence:
            influence.fit(split(train, 7), ABSOLUTE)
            found.append(influence.groups(split(train, 7), split(queries, 4), torch.arange(QUERIES) % 2, 2))
    torch.testing.assert_close(found[0].influence, found[1].influence, rtol=0, atol=EXACT)
    torch.testing.assert_close(found[0].own.self_influence, found[1].own.self_influence, rtol=0, atol=EXACT)


def test_where_items_repeat_the_output_covariance_is_that_of_whole_gradients() -> None:
    """The one-hot form takes it over positions, which leaves out what two positions of one row have in common."""
    model, batch = recommender(), drawn(POINTS, repeats=True)
    with Reader(model, TASK, select(model)) as reader:
        roots = reader.train(batch, 0, torch.arange(POINTS)).roots
    assert roots is not None
    assert isinstance(roots["items"], TableFactor)
    full = torch.stack([dense(roots["items"].at(g)) for g in roots["items"].g])  # [R, B, d, V]
    curvature = EKFAC(select(model))
    for _ in range(2):
        curvature.accumulate(roots, torch.ones(POINTS))
        curvature.reduce(alone)
    state = curvature.state["items"]
    moment = torch.einsum("rbdv,rbev->de", full, full) / POINTS
    torch.testing.assert_close(state.outputs.spectrum, torch.linalg.eigvalsh(moment), rtol=0, atol=EXACT)
    turned = torch.einsum("de,rbdv->rbev", state.outputs.basis, full)
    torch.testing.assert_close(state.eigenvalues.value, turned.square().sum((0, 1)) / POINTS, rtol=0, atol=EXACT)


def test_factors_that_were_kept_on_disk_give_the_same_scores() -> None:
    model = recommender()
    blocks, file = select(model), io.BytesIO()
    kept = scored(blocks, EKFAC(blocks), model, FactorCache(0, 2**20, file))
    assert len(file.getvalue()) > 0
    assert kept.influence.equal(scored(blocks, EKFAC(blocks), model).influence)


def test_queries_solved_in_parts_on_three_ranks_score_as_those_solved_at_once() -> None:
    model = recommender()
    blocks = select(model)
    curvature = EKFAC(blocks)
    scored(blocks, curvature, model)
    batches = split(drawn(QUERIES, repeats=True, seed=2), 2)  # five parts: three ranks have not as many as each other
    with Reader(model, TASK, blocks) as reader:
        parts = [each([reader.queries(batch)], len(batch[1])) for batch in batches]
        whole = each(map(reader.queries, batches), QUERIES)
        losses = reader.losses(drawn(POINTS, repeats=True)).losses

    def read(part: int) -> Queries:
        return parts[part]

    sizes = [len(part.labels) for part in parts]
    truth = PairScorer(curvature, whole, POINTS).score(losses)
    for (scorer,) in on_ranks(3, lambda share, send: share_queries([curvature], read, sizes, POINTS, share, send)):
        torch.testing.assert_close(scorer.score(losses).influence, truth.influence, rtol=0, atol=1e-14)


def test_the_step_of_a_removal_is_that_of_the_one_hot_form() -> None:
    moved = []
    for large in (True, False):
        model = recommender()
        blocks = select(model) if large else one_hot(model)
        curvature = EKFAC(blocks)
        scored(blocks, curvature, model)
        with Reader(model, TASK, blocks) as reader:
            leaving = summed([(reader.losses(drawn(5, repeats=False)).losses, torch.tensor([1.0, 1, 0, 1, -1]))])
        move(blocks, influence_step(curvature, leaving, POINTS))
        moved.append(model)
    before = recommender()
    for name in ("users", "items"):
        found, truth = (getattr(model, name).weight.detach() for model in moved)
        assert (truth - getattr(before, name).weight.detach()).abs().max() > 1e-3
        torch.testing.assert_close(found, truth, rtol=0, atol=EXACT)


def numbers(factors: Factors) -> int:
    return sum(factor.g.numel() + factor.inputs.numel() for factor in factors.values())


def test_what_is_held_of_a_point_and_a_query_does_not_grow_with_the_table() -> None:
    sizes = []
    for rows in (ROWS, 10 * ROWS):
        model = recommender(rows)
        with Reader(model, TASK, select(model)) as reader:
            train = reader.train(drawn(POINTS, repeats=True), 0, torch.arange(POINTS))
            queries = each([reader.queries(drawn(QUERIES, repeats=True))], QUERIES)
        assert train.roots is not None
        stored = sum(one.values().numel() for one in queries.gradients.values() if one.is_sparse)
        sizes.append((numbers(train.losses), numbers(train.roots), stored))
    assert sizes[0] == sizes[1]
    assert sizes[0][2] <= QUERIES * (4 + 5 * 3)


@pytest.mark.parametrize("kind", [GaussNewton, DualGaussNewton, PCG, Arnoldi])
def test_an_estimator_that_forms_gradients_refuses_a_large_table(kind: type[PCG]) -> None:
    with pytest.raises(InfluenceError, match=r"block 'users': a table of 5000 rows is held by .* which only EK-FAC, K"):
        kind(select(recommender()))


def test_compression_and_the_gradients_themselves_are_refused() -> None:
    model = recommender()
    with pytest.raises(InfluenceError, match="block 'users': a table of 5000 rows"):
        factor_mask(select(model), 2)
    with pytest.raises(InfluenceError, match="a table of 5000 rows is held by the rows that points touch"):
        materialise(pulled(model, drawn(POINTS, repeats=False))["users"])
