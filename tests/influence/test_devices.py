"""Everything is computed where the model is: scores on a device that refuses to be mixed with the CPU are the CPU's."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from influence import (
    EKFAC,
    KFAC,
    PCG,
    Arnoldi,
    Blocks,
    Compressor,
    Curvature,
    DualGaussNewton,
    FactorCache,
    Fisher,
    GaussNewton,
    Identity,
    Influence,
    PairScores,
    Reader,
    Task,
    coordinate_mask,
    factor_mask,
    gaussian,
    masked_sjlt,
    random_logra,
    select,
    sjlt,
)
from influence.devices import on
from influence.positions import direction, position_influence
from influence.removal import summed
from influence.suspicion import knn_votes
from influence.turnover import turn_over_influence
from influence.whole import exact_influence, point_energies
from tests.away import AWAY, CPU, away, held
from tests.influence.cases import ABSOLUTE, TASK, Batch, conv_net, images, mlp, normed, points, split

WORDS, LARGE = 11, 5000


class Scaled(nn.Module):
    """With parameters of its own, which go through torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 0.5, 2.0, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).tanh()


class Words(nn.Module):
    """Logits of the next word at every position; with `tied`, the head is the table."""

    def __init__(self, words: int = WORDS, *, tied: bool = False) -> None:
        super().__init__()
        self.table, self.mix, self.norm = nn.Embedding(words, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, words, bias=False)
        self.tied = tied
        self.tie()

    def tie(self) -> None:
        if self.tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.mix(self.table(tokens)).cumsum(1)))


class Bag(nn.Module):
    """Classes of texts, from a table too large for one-hot inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(LARGE, 3), nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1))


def grouped() -> nn.Module:
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 3)
    return nn.Sequential(*layers)


def own_parameters() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), Scaled(), nn.Linear(4, 3))


def texts(count: int, seed: int, words: int = WORDS) -> Batch:
    """Tokens and the next of each; texts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(words, (count, 6), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[torch.arange(6) >= 3 + torch.arange(count)[:, None] % 3] = -100
    return tokens, targets


def bags(count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(LARGE, (count, 4), generator=generator), torch.arange(count) % 3


Made = tuple[Callable[[], nn.Module], Callable[[int, int], Batch], str]
MODELS: dict[str, Made] = {
    "linear": (mlp, lambda count, seed: points(count, seed=seed), "exact"),
    "layer norm": (normed, lambda count, seed: points(count, seed=seed), "exact"),
    "convolutions": (conv_net, lambda count, seed: images(count, seed=seed), "exact"),
    "groups of channels": (grouped, lambda count, seed: images(count, seed=seed), "exact"),
    "torch.func": (own_parameters, lambda count, seed: points(count, seed=seed), "exact"),
    "texts": (Words, texts, "sampled"),
    "tied": (lambda: Words(tied=True), texts, "empirical"),
    "large table": (Bag, bags, "exact"),
}
CURVATURES: dict[str, Callable[[Blocks], Curvature]] = {
    "ekfac": EKFAC,
    "ekfac, cut": lambda blocks: EKFAC(blocks, cut=0.9),
    "kfac": KFAC,
    "dense": GaussNewton,
    "dual": lambda blocks: DualGaussNewton(blocks, cut=0.0003),
    "arnoldi": Arnoldi,
    "pcg": PCG,
    "identity": Identity,
}
COMPRESSORS: dict[str, Callable[[Blocks, float], Compressor]] = {
    "coordinates": coordinate_mask,
    "mask": factor_mask,
    "gaussian": gaussian,
    "sjlt": sjlt,
    "mask+sjlt": masked_sjlt,
    "logra": random_logra,
}


def made(case: str, device: torch.device) -> tuple[nn.Module, list[Batch], list[Batch], Task[Batch], Fisher]:
    """The same model, train points and queries on a device."""
    build, draw, fisher = MODELS[case]
    torch.manual_seed(0)
    model = build().double().eval().to(device)
    if isinstance(model, Words):
        model.tie()  # a GPU keeps the parameters themselves and moves what is in them
    train, queries = (
        [tree_map_only(Tensor, lambda one: one.to(device), piece) for piece in split(draw(count, seed), 7)]
        for count, seed in ((20, 1), (8, 2))
    )
    return model, train, queries, TASK, Fisher(fisher)  # type: ignore[arg-type]


def scored(
    case: str,
    device: torch.device,
    build: Callable[[Blocks], Curvature] = EKFAC,
    compress: Callable[[Blocks, float], Compressor] | None = None,
    cache: FactorCache | None = None,
) -> tuple[PairScores, Curvature]:
    model, train, queries, task, fisher = made(case, device)
    blocks = select(model)
    small = None if compress is None else compress(blocks, 2.0)
    curvature = build(blocks if small is None else small.blocks)
    with Influence(model, task, curvature, blocks, fisher, cache, small) as influence:
        influence.fit(train, ABSOLUTE)
        return influence.pairs(train, queries), curvature


def assert_there(thing: Any) -> None:
    found = held(thing)
    assert found
    for where, tensor in found.items():
        assert tensor.device == AWAY, where


def assert_same(found: PairScores, truth: PairScores) -> None:
    assert found.influence.device == AWAY
    home = on(CPU, found)
    for name in ("influence", "classification", "self_influence"):
        torch.testing.assert_close(getattr(home, name), getattr(truth, name), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("case", MODELS)
def test_every_kind_of_layer_is_scored_where_it_is(case: str, cached: bool) -> None:
    truth, _ = scored(case, CPU)
    cache = FactorCache(1 << 20) if cached else None
    with away():
        found, curvature = scored(case, AWAY, cache=cache)
        assert_same(found, truth)
        assert_there(curvature)
    if cache is not None:
        assert cache.held, "and what is kept of it lies on the host"
        assert all(tensor.device == CPU for tensor in held(cache).values())


@pytest.mark.parametrize("kind", CURVATURES)
def test_every_curvature_is_fitted_and_solved_where_the_model_is(kind: str) -> None:
    truth, fitted = scored("linear", CPU, CURVATURES[kind])
    with away():
        found, curvature = scored("linear", AWAY, CURVATURES[kind])
        assert_same(found, truth)
        if kind != "identity":  # which holds nothing
            assert_there(curvature)
        for name, one in curvature.diagnostics().items():
            assert asdict(one) == pytest.approx(asdict(fitted.diagnostics()[name]), abs=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in CURVATURES if kind != "identity"])
def test_a_curvature_kept_on_the_cpu_is_restored_to_where_the_model_is(kind: str) -> None:
    truth, fitted = scored("linear", CPU, CURVATURES[kind])
    with away():
        model, train, queries, task, fisher = made("linear", AWAY)
        curvature = CURVATURES[kind](select(model))
        curvature.restore(fitted.snapshot())  # type: ignore[attr-defined]
        curvature.finish(ABSOLUTE)
        with Influence(model, task, curvature, select(model), fisher) as influence:
            influence._points = 20
            assert_same(influence.pairs(train, queries), truth)
        assert_there(curvature)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_every_compressor_is_drawn_as_on_the_cpu_and_lies_where_the_model_is(kind: str) -> None:
    build = GaussNewton if kind in ("coordinates", "gaussian", "sjlt", "mask+sjlt") else EKFAC
    truth, _ = scored("linear", CPU, build, COMPRESSORS[kind])
    with away():
        found, curvature = scored("linear", AWAY, build, COMPRESSORS[kind])
        assert_same(found, truth)
        assert_there(curvature)
        model = made("linear", AWAY)[0]
        assert_there(COMPRESSORS[kind](select(model), 2.0).sketches)


def on_the_whole_model(device: torch.device) -> list[Tensor]:
    """Energies of blocks, exact influence, influence by position, on groups and by masks, and neighbours."""
    model, train, queries, task, _ = made("linear", device)
    singles = [(x[None], y[None]) for batch in train[:1] for x, y in zip(*batch)]
    names = [name for name, _ in model.named_parameters()]
    model.requires_grad_(True)
    found = [
        point_energies(model, task, singles),
        exact_influence(model, task, train, singles[:3], [queries], names, 0.1, 20),
        turn_over_influence(model, task, ["0", "2"], torch.arange(20), queries, seed=1),
    ]
    blocks = select(model)
    with Influence(model, task, curvature := EKFAC(blocks), blocks) as influence:
        influence.fit(train, ABSOLUTE)
        groups = influence.groups(train, queries, torch.arange(8) % 2, 2)
        found += [groups.influence, groups.mean]
    with Reader(model, task, blocks) as reader:
        gradient = summed((reader.losses(batch).losses, torch.ones(len(batch[1]))) for batch in queries)
        along = direction(curvature, gradient, 8, 20)
        found.append(position_influence(reader.losses(train[0]).losses, along, blocks, 1).positions)
    inputs, labels = (torch.cat([batch[part] for batch in train]) for part in (0, 1))
    return [*found, knn_votes(inputs, labels.cpu(), 3, torch.ones(20).bool(), k=3)]


def test_what_takes_the_whole_model_and_what_takes_none_follow_their_tensors() -> None:
    truth = on_the_whole_model(CPU)
    with away():
        found = on_the_whole_model(AWAY)
    for one, other in zip(found, truth, strict=True):
        assert one.device == AWAY
        torch.testing.assert_close(on(CPU, one), other, rtol=1e-12, atol=1e-14)


def mixed(x: Tensor) -> Iterator[Callable[[], Any]]:
    """What a GPU refuses, for rows `x` [3, 2] on a device, with tensors of the CPU."""
    yield lambda: x @ torch.ones(2, 2)
    yield lambda: x + torch.ones(3, 2)
    yield lambda: torch.ones(3)[x[:, 0] > 0]
    yield lambda: torch.ones(3).index_put_((torch.arange(3),), x[:, 0])
    yield lambda: x.index_select(0, torch.arange(2))
    yield lambda: torch.zeros(()).add_(x.sum())
    yield lambda: torch.stack([torch.zeros(()), x.sum()])
    yield lambda: torch.randn(3, device=AWAY, generator=torch.Generator())
    yield lambda: x.numpy()


def test_the_stand_in_refuses_what_a_gpu_refuses_and_nothing_else() -> None:
    with away():
        x = torch.arange(6.0).view(3, 2).to(AWAY)
        for mix in mixed(x):
            with pytest.raises(RuntimeError, match=r"CPU|numpy"):
                mix()
        taken = [x[torch.arange(2)], x * torch.tensor(2.0), x.where(x > 1, torch.zeros(()))]
        assert all(one.device == AWAY for one in taken)
        assert torch.zeros(3, 2).copy_(x).tolist() == x.cpu().tolist() == x.tolist()
