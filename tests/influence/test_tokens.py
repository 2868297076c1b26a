"""Texts: the loss is the mean over targets, and everything that follows from it, on a small transformer in float64."""

import tempfile

import pytest
import torch
from torch import Tensor, nn

from influence import (
    EKFAC,
    IGNORED,
    Blocks,
    Damping,
    FactorCache,
    Fisher,
    Influence,
    InfluenceError,
    PairScores,
    Reader,
    Task,
    by_name,
    cheap_signals,
    empirical_influence,
    exact_influence,
    materialise,
    model_product,
    point_losses,
    select,
)
from influence.objective import check_cross_entropy

WORDS = 7
Batch = tuple[Tensor, Tensor]  # tokens, targets
TASK: Task[Batch] = Task(lambda model, batch: model(batch[0]), lambda batch: batch[1])


class Transformer(nn.Module):
    """One causal attention and one hidden layer; positions are told apart by what came before."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.up, self.head = nn.Linear(width, width, bias=False), nn.Linear(width, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens)
        later = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
        h = h + (self.query(h) @ self.key(h).mT).masked_fill(later, -torch.inf).softmax(2) @ self.value(h)
        return self.head(h + self.up(h).tanh())


def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer().double().eval()


def texts(count: int = 6, *, seed: int = 1, padding: int = 0) -> Batch:
    """Of 3 … 7 tokens, whose first two are not learned; filled up on the right."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, WORDS, (count, 7), generator=generator)
    lengths = 4 + torch.arange(count) % 4
    places = torch.arange(7)
    tokens = tokens.where(places < lengths[:, None], 0)
    targets = tokens.roll(-1, 1).where((places >= 1) & (places + 1 < lengths[:, None]), IGNORED)
    pad = torch.nn.functional.pad
    return pad(tokens, (0, padding)), pad(targets, (0, padding), value=IGNORED)


def take(batch: Batch, rows: Tensor | slice) -> Batch:
    return batch[0][rows], batch[1][rows]


def roots(
    model: nn.Module, batch: Batch, fisher: Fisher, keys: Tensor | None = None, blocks: Blocks | None = None
) -> dict[str, Tensor]:
    """By block, the gradients [R, B, o, i]."""
    with Reader(model, TASK, blocks or select(model), fisher) as reader:
        found = reader.train(batch, 0, torch.arange(len(batch[0])) if keys is None else keys).roots
    return {name: materialise(factor) for name, factor in found.items()}


def test_a_texts_gradient_is_that_of_its_own_mean_loss() -> None:
    model, batch = transformer(), texts()
    with Reader(model, TASK, select(model)) as reader:
        read, asked = reader.losses(batch), reader.queries(batch)
    names = [(block.name, [name for name, _ in block.module.named_parameters()]) for block in select(model)]
    model.requires_grad_(True)
    for row in range(len(batch[0])):
        tokens, targets = batch[0][row], batch[1][row]
        log_p = model(tokens[None])[0].log_softmax(1)
        learned = [place for place, target in enumerate(targets.tolist()) if target != IGNORED]
        loss = -sum(log_p[place, targets[place]] for place in learned) / len(learned)
        for name, parameters in names:
            module = model.get_submodule(name)
            model.zero_grad()
            loss.backward(retain_graph=True)
            full = [getattr(module, parameter).grad for parameter in parameters]
            truth = torch.cat([one.reshape(len(full[0]), -1) for one in full], 1)
            truth = truth.T if isinstance(module, nn.Embedding) else truth
            for found in (read, asked):
                got = materialise(found.losses[name])[row]
                torch.testing.assert_close(got if got.shape == truth.shape else got.T, truth)
        torch.testing.assert_close(read.signals.loss[row], loss.detach())


def test_sampled_roots_add_up_to_the_gauss_newton_matrix_of_the_mean_loss() -> None:
    """E sum_r r r' = 1/T sum_t J_t' (diag(p_t) - p_t p_t') J_t, of one text, by 2,000 draws."""
    model, batch = transformer(), take(texts(), slice(3, 4))
    found = roots(model, batch, Fisher("sampled", draws=2000), blocks=select(model, by_name("up")))["up"][:, 0].flatten(
        1
    )
    product = model_product(model, TASK.logits, [batch], ["up.weight"], 0.0, TASK.labels)
    identity = torch.eye(36, dtype=torch.float64).view(36, 6, 6)
    exact = product({"up.weight": identity})["up.weight"].flatten(1)
    assert (found.T @ found - exact).norm() < 0.1 * exact.norm()
    assert float(found.square().sum() / exact.trace()) == pytest.approx(1, abs=0.05)


def test_the_gauss_newton_product_is_that_of_every_token_by_itself() -> None:
    model, batch = transformer(), take(texts(), slice(3, 4))
    product = model_product(model, TASK.logits, [batch], ["up.weight"], 0.0, TASK.labels)
    v = torch.randn(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    learned = (batch[1][0] != IGNORED).nonzero()[:, 0]
    weight = model.up.weight.detach()

    def logits(value: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"up.weight": value}, (batch[0],))[0, learned]

    jacobian = torch.func.jacrev(logits)(weight).flatten(2)  # [T, V, o i]
    p = logits(weight).softmax(1).detach()
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    whole = torch.einsum("tvj,tvw,twk->jk", jacobian, curvature, jacobian) / len(learned)
    torch.testing.assert_close(product({"up.weight": v})["up.weight"].flatten(), whole @ v.flatten())


def test_empirical_roots_are_the_loss_gradient_times_the_square_root_of_its_targets() -> None:
    model, batch = transformer(), texts()
    with Reader(model, TASK, select(model), Fisher("empirical")) as reader:
        read = reader.train(batch, 0, torch.arange(6))
    count = (batch[1] != IGNORED).sum(1).double().sqrt()[:, None, None]
    for name, factor in read.losses.items():
        torch.testing.assert_close(materialise(read.roots[name])[0], materialise(factor) * count)


@pytest.mark.parametrize("kind", ["sampled", "empirical"])
def test_neither_padding_nor_the_batch_nor_its_order_changes_a_score(kind: str) -> None:
    train, queries, order = texts(12), texts(5, seed=2), torch.tensor([7, 2, 9, 0, 4, 11, 1, 3, 6, 10, 8, 5])
    plain = scored([train], [queries], kind)
    padded = scored([texts(12, padding=5)], [texts(5, seed=2, padding=3)], kind)
    apart = scored([take(train, rows) for rows in torch.arange(12).split(5)], [queries], kind)
    turned = scored([take(train, order)], [queries], kind, keys=order)
    for other, rows in ((padded, torch.arange(12)), (apart, torch.arange(12)), (turned, order)):
        for name in ("influence", "self_influence"):
            one, same = getattr(plain, name)[rows], getattr(other, name)
            assert (one - same).norm() <= 1e-5 * one.norm(), name


def scored(train: list[Batch], queries: list[Batch], kind: str, keys: Tensor | None = None) -> PairScores:
    """In float32, as a cycle scores."""
    model, keys = transformer().float(), torch.arange(12) if keys is None else keys
    blocks = select(model)
    curvature = EKFAC(blocks)
    with Influence(model, TASK, curvature, blocks, Fisher(kind)) as influence:
        right = influence._reader.train
        influence._reader.train = lambda batch, number, rows: right(batch, number, keys[rows])
        influence.fit(train, Damping("absolute", 0.01))
        return influence.pairs(train, queries)


def test_a_reading_holds_no_logits() -> None:
    with Reader(model := transformer(), TASK, select(model)) as reader:
        assert reader.losses(texts()).logits.untyped_storage().nbytes() == 0


def test_what_follows_a_prompt_is_learned_and_the_prompt_is_not() -> None:
    """Another target where there is none changes nothing; the same word as a target does."""
    model, batch = transformer(), texts()
    hidden, learned = batch[1].clone(), batch[1].clone()
    assert (batch[1][:, 0] == IGNORED).all()
    learned[:, 0] = 3
    before, other = (roots(model, one, Fisher("sampled")) for one in (batch, (batch[0], learned)))
    same = roots(model, (batch[0], hidden), Fisher("sampled"))
    for name in before:
        assert before[name].equal(same[name])
    assert not point_losses(model(batch[0]), learned).allclose(point_losses(model(batch[0]), batch[1]))
    assert not before["up"].allclose(other["up"])


def test_drawn_labels_are_the_texts_own_and_differ_from_token_to_token() -> None:
    model, one = transformer(), take(texts(), slice(3, 4))
    twice = (one[0].repeat(2, 1), one[1].repeat(2, 1))
    same = roots(model, twice, Fisher("sampled"), torch.tensor([5, 5]))["head"][0]
    other = roots(model, twice, Fisher("sampled"), torch.tensor([5, 6]))["head"][0]
    torch.testing.assert_close(same[0], same[1])
    torch.testing.assert_close(other[0], same[0])
    assert not other[1].allclose(other[0])


def test_signals_of_a_text_are_means_over_its_targets_and_nothing_is_predicted() -> None:
    model, batch = transformer(), texts()
    with Reader(model, TASK, select(model)) as reader:
        found = reader.losses(batch).signals
    with torch.no_grad():
        z = model(batch[0])
    assert found.predicted is None
    for row in range(6):
        learned = batch[1][row] != IGNORED
        truth = cheap_signals(z[row, learned], batch[1][row, learned])
        for name in ("loss", "margin", "confidence", "entropy", "el2n"):
            torch.testing.assert_close(getattr(found, name)[row], getattr(truth, name).mean())


def test_a_kept_reading_is_the_one_that_was_read() -> None:
    model, batch = transformer(), texts()
    for memory, disk in ((1 << 20, 0), (0, 1 << 20)):
        with tempfile.TemporaryFile() as file:
            cache = FactorCache(memory, disk, file)
            with Reader(model, TASK, select(model), Fisher("sampled"), cache) as reader:
                first, again = (reader.train(batch, 0, torch.arange(6)) for _ in range(2))
        assert again.labels.equal(first.labels)
        for name in ("loss", "el2n"):
            assert getattr(again.signals, name).equal(getattr(first.signals, name))
        assert all(again.roots[name].g.equal(first.roots[name].g) for name in first.roots)


def test_under_a_damping_that_drowns_the_curvature_exact_influence_is_a_product_of_gradients() -> None:
    model, batch = transformer(), texts()
    model.requires_grad_(True)
    names = [name for name, _ in model.named_parameters()]
    one = take(batch, slice(0, 1))
    found = exact_influence(model, TASK, [batch], [one], [[one]], names, 1e6, 6)
    gradients = torch.autograd.grad(point_losses(model(one[0]), one[1])[0], list(model.parameters()))
    norm = sum(float(gradient.square().sum()) for gradient in gradients)
    assert float(found) * 6 * 1e6 == pytest.approx(norm, rel=1e-3)


def test_empirical_influence_takes_texts() -> None:
    model, batch = transformer(), texts()
    found = empirical_influence(model, TASK, [batch], [texts(2, seed=5)], rate=1e-3, steps=1)
    assert found.shape == (6, 2)
    assert (found != 0).all()


def test_a_loss_that_is_no_mean_over_targets_is_refused() -> None:
    model, batch = transformer(), texts()
    with torch.no_grad():
        z = model(batch[0])
    losses = point_losses(z, batch[1])
    check_cross_entropy(losses, z, batch[1])
    with pytest.raises(InfluenceError, match="not the cross-entropy"):
        check_cross_entropy(losses * (batch[1] != IGNORED).sum(1), z, batch[1])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("exact", "one root per word of the vocabulary"),
        ("outside", "target 9 is outside 0 … 6"),
        ("empty", "row 2 has no target"),
        ("shorter", "for targets"),
    ],
)
def test_what_cannot_be_done_with_texts_is_said(fault: str, said: str) -> None:
    model, (tokens, targets) = transformer(), texts()
    if fault == "outside":
        targets[1, 1] = 9
    if fault == "empty":
        targets[2] = IGNORED
    if fault == "shorter":
        targets = targets[:, 1:]
    fisher = Fisher("exact" if fault == "exact" else "sampled")
    with Reader(model, TASK, select(model), fisher) as reader, pytest.raises(InfluenceError, match=said):
        reader.train((tokens, targets), 0, torch.arange(6))
