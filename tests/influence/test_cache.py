import io
import tempfile
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from influence import (
    EKFAC,
    FactorCache,
    Factors,
    Fisher,
    Influence,
    InfluenceError,
    Own,
    PairScores,
    Reader,
    Reading,
    Task,
    select,
)
from tests.influence.cases import ABSOLUTE, TASK, Batch, conv_net, images, mlp, normed, points, read, split

MODELS = {"mlp": (mlp(), points(30)), "norm": (normed(), points(30)), "conv": (conv_net(), images(30))}
every_model = pytest.mark.parametrize("case", MODELS)


def tensors(reading: Reading) -> list[Tensor]:
    assert reading.roots is not None
    parts = [part for factors in (reading.losses, reading.roots) for f in factors.values() for part in (f.a, f.g)]
    return [reading.logits, reading.labels, *parts]


def held(readings: list[Reading]) -> int:
    """Bytes of memory behind some readings, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for r in readings for t in tensors(r)}
    return sum(storage.nbytes() for storage in storages.values())


def size(case: str) -> int:
    """Bytes that the readings of all points take."""
    model, batch = MODELS[case]
    return held([read(model, piece) for piece in split(batch, 7)])


def scored(case: str, cache: FactorCache | None, fisher: Fisher | None = None) -> PairScores:
    model, batch = MODELS[case]
    queries = batch[0][:5], batch[1][:5]
    blocks = select(model)
    with Influence(model, TASK, EKFAC(blocks), blocks, fisher, cache) as influence:
        influence.fit(split(batch, 7), ABSOLUTE)
        return influence.pairs(split(batch, 7), [queries])


def same(found: PairScores, truth: PairScores) -> bool:
    assert isinstance(found.own, Own)
    return found.influence.equal(truth.influence) and found.self_influence.equal(truth.self_influence)


@every_model
@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize(("memory", "disk"), [(1.0, 0.0), (0.0, 1.0), (0.4, 0.3), (0.0, 0.0)])
def test_what_is_kept_and_where_never_changes_a_result(case: str, kind: str, memory: float, disk: float) -> None:
    fisher = Fisher(kind)  # type: ignore[arg-type]
    whole = 2 * size(case)
    with tempfile.TemporaryFile() as file:
        cache = FactorCache(int(memory * whole), int(disk * whole), file)
        assert same(scored(case, cache, fisher), scored(case, None, fisher))


@every_model
def test_a_reading_comes_back_from_the_file_as_it_went_in(case: str) -> None:
    readings = [read(MODELS[case][0], piece) for piece in split(MODELS[case][1], 7)]
    cache = FactorCache(0, 10 * size(case), io.BytesIO())
    for number, reading in enumerate(readings):
        cache.put(number, reading)
    for number in (3, 0, 4, 1, 2):
        found = cache.get(number)
        assert found is not None
        assert found is not readings[number]
        assert all(one.equal(other) for one, other in zip(tensors(found), tensors(readings[number]), strict=True))
    assert cache.get(5) is None


@every_model
def test_budgets_are_never_exceeded_and_memory_is_filled_first(case: str) -> None:
    model, batch = MODELS[case]
    whole, file = size(case), io.BytesIO()
    memory = disk = whole // 2
    cache = FactorCache(memory, disk, file)
    pieces = split(batch, 7)
    for number, piece in enumerate(pieces):
        cache.put(number, read(model, piece))
        cache.put(number, read(model, piece))  # kept already: no room is taken twice
    kept = [cache.get(number) for number in range(len(pieces))]
    assert sum(tensor.nbytes for kept in cache._in_memory.values() for tensor in kept) == cache.held <= memory
    assert len(file.getvalue()) <= disk
    assert set(cache._in_memory) == set(range(len(cache._in_memory)))
    assert len(cache._in_memory) >= 1
    assert len(cache._on_disk) >= 1
    assert sum(one is not None for one in kept) == len(cache._in_memory) + len(cache._on_disk)


@pytest.mark.parametrize(("memory", "forwards"), [(1 << 30, 5), (0, 15)])
def test_kept_points_are_computed_once(memory: int, forwards: int) -> None:
    # 30 points in batches of 7: 5 forward passes, against 5 for each of two passes of fitting and one of scoring.
    model, batch = MODELS["mlp"]
    calls = 0

    def counted(model: torch.nn.Module, piece: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        return TASK.logits(model, piece)

    blocks, task = select(model), Task(counted, TASK.labels)
    with Influence(model, task, EKFAC(blocks), blocks, cache=FactorCache(memory)) as influence:
        influence.fit(split(batch, 7), ABSOLUTE)
        influence.pairs(split(batch, 7), [batch])
    assert calls == forwards + 1  # and one for the queries


class Shuffled:
    """Batches in another order at every iteration."""

    def __init__(self, batch: Batch, size: int) -> None:
        self.batch, self.size = batch, size
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.batch[0]), generator=self.generator)
        yield from split((self.batch[0][order], self.batch[1][order]), self.size)


@pytest.mark.parametrize("budget", [{"memory": 1 << 20}, {"memory": 0, "disk": 1 << 20, "file": io.BytesIO()}])
def test_a_shuffled_loader_is_refused(budget: dict) -> None:
    model, batch = MODELS["mlp"]
    blocks = select(model)
    with (
        Influence(model, TASK, EKFAC(blocks), blocks, cache=FactorCache(**budget)) as influence,
        pytest.raises(InfluenceError, match="batch 0 has other labels than in the pass before: do not shuffle"),
    ):
        influence.fit(Shuffled(batch, 10), ABSOLUTE)


def test_batches_of_another_size_are_refused() -> None:
    model, batch = MODELS["mlp"]
    with Reader(model, TASK, select(model), cache=FactorCache(1 << 20)) as reader:
        reader.train(batch, 0, torch.arange(30))
        with pytest.raises(InfluenceError, match="batch 0 has other labels"):
            reader.losses(split(batch, 7)[0], 0)


def test_a_file_that_was_cut_is_refused() -> None:
    file = io.BytesIO()
    cache = FactorCache(0, 1 << 20, file)
    cache.put(0, read(*MODELS["mlp"]))
    file.truncate(100)
    with pytest.raises(InfluenceError, match="ends early"):
        cache.get(0)


@pytest.mark.parametrize("budget", [(-1, 0), (0, -1), (0, 1)])
def test_a_budget_below_zero_or_of_disk_without_a_file_is_refused(budget: tuple[int, int]) -> None:
    with pytest.raises(InfluenceError, match="give a file for disk"):
        FactorCache(*budget)


def test_losses_without_roots_are_equal_to_those_with() -> None:
    model, batch = MODELS["conv"]
    with Reader(model, TASK, select(model)) as reader:
        alone: Factors = reader.losses(batch).losses
        beside = reader.train(batch, 0, torch.arange(30)).losses
    assert all(alone[name].g.equal(beside[name].g) and alone[name].a.equal(beside[name].a) for name in alone)
