"""Influence through the head alone, and which points it says to drop."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from influence import EKFAC, Damping, GaussNewton, Influence, Task, head
from influence.dropping import HeadInfluence, HeadPoints, HeadScorer, worst
from influence.scores import stratified_error

Batch = tuple[Tensor, Tensor]
TASK: Task[Batch] = Task(lambda model, batch: model(batch[0]), lambda batch: batch[1])
DAMPING = Damping("absolute", 0.1)


def blobs(seed: int, count: int, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = 2 * torch.eye(classes)
    return centres[labels] + 0.4 * torch.randn(count, classes, generator=generator), labels


def read(model: nn.Sequential, batch: Batch) -> HeadPoints:
    with torch.no_grad():
        inputs = model[:-1](batch[0])
        logits = model[-1](inputs)
    return HeadPoints(torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double(), logits.double(), batch[1])


def trained(batch: Batch, *hidden: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*hidden, nn.Linear(3, 3))
    solver = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(100):
        solver.zero_grad()
        cross_entropy(model(batch[0]), batch[1]).backward()
        solver.step()
    return model


@pytest.mark.parametrize("kind", [EKFAC, GaussNewton])
def test_scores_are_those_of_the_engine_on_the_head_without_a_backward_pass(
    kind: type[EKFAC] | type[GaussNewton], monkeypatch: pytest.MonkeyPatch
) -> None:
    points, queries = blobs(0, 60), blobs(1, 25)
    model = trained(points, nn.Linear(3, 3), nn.Tanh())
    block = head(model)
    with Influence(model, TASK, kind([block]), (block,)) as influence:
        influence.fit([points], DAMPING)
        expected = influence.pairs([points], [queries]).influence
    monkeypatch.setattr(Tensor, "backward", lambda *_: pytest.fail("a backward pass"))
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: pytest.fail("a backward pass"))
    halves = [read(model, (points[0][rows], points[1][rows])) for rows in torch.arange(60).split(30)]
    found = HeadScorer(kind([block]), lambda: halves, read(model, queries), 60, DAMPING).score(read(model, points))
    # float32 factors in the engine, float64 here
    torch.testing.assert_close(found.mean, expected.mean(1), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.error, stratified_error(expected, queries[1]), rtol=1e-4, atol=1e-7)


def test_of_a_linear_model_the_planted_wrong_labels_are_dropped_and_no_other() -> None:
    inputs, true = blobs(0, 200)
    labels = torch.where(torch.arange(200) < 20, (true + 1) % 3, true)
    model = trained((inputs, labels))
    points = read(model, (inputs, labels))
    scorer = HeadScorer(GaussNewton([head(model)]), lambda: [points], read(model, blobs(1, 100)), 200, DAMPING)
    found = scorer.score(points)
    dropped = worst(found, torch.ones(200, dtype=torch.bool))
    assert sorted(dropped.tolist()) == list(range(20))
    assert bool((found.mean[dropped].diff() >= 0).all())
    assert bool((found.mean[dropped] < 0).all())


def influence(*values: float, error: float = 0.0) -> HeadInfluence:
    return HeadInfluence(torch.tensor(values).double(), torch.full((len(values),), error).double())


@pytest.mark.parametrize(("spared", "expected"), [((), [1, 3, 4, 0]), ((1, 3), [4, 0]), ((0, 1, 3, 4), [])])
def test_the_most_harmful_go_first_and_ties_in_their_order(spared: tuple[int, ...], expected: list[int]) -> None:
    found = influence(-1.0, -3.0, 0.0, -2.0, -2.0, 4.0)
    eligible = ~torch.isin(torch.arange(6), torch.tensor(spared, dtype=torch.int64))
    assert worst(found, eligible).tolist() == expected


def test_harm_within_its_error_is_no_harm() -> None:
    assert worst(influence(-1.0, -3.0, error=1.0), torch.ones(2, dtype=torch.bool)).tolist() == [1]
