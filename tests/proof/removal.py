"""Removal without training against training without the points: digits, 5 data seeds, the shipped model and recipe.

    python -m tests.proof.removal

A tenth of the labels is wrong. Three removals of a tenth of the points, each carried out on one trained model by the
influence step (EK-FAC, last checkpoint, damping = weight decay, as a cycle does) and by the step of IAU, and by
training three models anew. Truth: their change of the query losses against three baselines. One core, two minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flows.workloads.digits import Digits
from influence import (
    EKFAC,
    Damping,
    Reader,
    Task,
    available,
    fit,
    influence_step,
    linear_blocks,
    move,
    pearson,
    spearman,
    summed,
    unlearning_step,
)
from influence.factored import Factors, Gradients

SEEDS, MODELS = 5, 3
EPOCHS, BATCH, RATE, DECAY = 40, 64, 1e-2, 0.1
T = 2.776  # Student's, 4 degrees of freedom, two-sided 95 %
Points = tuple[Tensor, Tensor]
TASK: Task[Points] = Task(lambda model, batch: model(batch[0]), lambda batch: batch[1])
METHODS = ("influence step", "unlearning step")


def trained(workload: Digits, points: Points, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = workload.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(points[1]), generator=generator).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(points[0][rows]), points[1][rows]).backward()
            optimizer.step()
    return model.eval()


def query_losses(model: nn.Module, queries: Points) -> Tensor:
    with torch.no_grad():
        return cross_entropy(model(queries[0]), queries[1], reduction="none").double()


def steps(model: nn.Module, points: Points, removed: Tensor) -> Mapping[str, Gradients]:
    """By method; `removed` is [n] bool."""
    blocks = linear_blocks(model)
    n = len(removed)
    with Reader(model, TASK, blocks) as reader:
        curvature = EKFAC(blocks)
        reading = reader.train(points, 0, torch.arange(n))
        fit([curvature], lambda: [(reading, torch.ones(n))])
        curvature.finish(Damping("absolute", DECAY))
        losses: Factors = reading.losses
    step = influence_step(curvature, summed([(losses, removed.double())]), n)
    stay, go = (summed([(losses, chosen.double() / int(chosen.sum()))]) for chosen in (~removed, removed))
    return {METHODS[0]: step, METHODS[1]: {name: one[0] for name, one in unlearning_step(stay, go).items()}}


def one_seed(seed: int) -> dict[tuple[str, str], tuple[float, ...]]:
    """By removal and method: Pearson, Spearman, predicted change of the mean query loss, real change."""
    workload, found = Digits(seed=seed), dict[tuple[str, str], tuple[float, ...]]()
    train, asked = workload.points(), workload.queries()
    points, queries = (
        (torch.stack([s[i][0] for i in range(len(s))]), torch.as_tensor(s.labels)) for s in (train, asked)
    )
    truth = workload.truth()
    wrong = torch.tensor([truth[point] != label for point, label in zip(train.ids, train.labels)])
    drawn = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(1000 + seed))[: int(wrong.sum())]
    mixed = torch.cat([wrong.nonzero()[:, 0][::2], drawn[1::2]])
    removals = {"wrong labels": wrong, "half of them wrong": torch.zeros_like(wrong), "random": torch.zeros_like(wrong)}
    removals["random"][drawn] = True
    removals["half of them wrong"][mixed] = True
    baselines = [trained(workload, points, model) for model in range(MODELS)]
    before = torch.stack([query_losses(model, queries) for model in baselines])
    for name, gone in removals.items():
        kept = points[0][~gone], points[1][~gone]
        after = torch.stack([query_losses(trained(workload, kept, model), queries) for model in range(MODELS)])
        real = (after - before).mean(0)
        for method, step in steps(baselines[0], points, gone).items():
            moved = workload.model().eval()
            moved.load_state_dict(baselines[0].state_dict())
            move(available(moved), step)
            change = query_losses(moved, queries) - before[0]
            figures = pearson(change, real), spearman(change, real), float(change.mean()), float(real.mean())
            found[name, method] = figures
    return found


def main() -> None:
    """Print the table."""
    cells = [one_seed(seed) for seed in range(SEEDS)]
    print("| removed | method | Pearson over queries | Spearman | foretold, nats | after retraining, nats |")
    print("|---|---|---|---|---|---|")
    for removal, method in cells[0]:
        columns = zip(*(one[removal, method] for one in cells))
        said = [f"{fmean(values):+.3f} ± {T * stdev(values) / SEEDS**0.5:.3f}" for values in map(list, columns)]
        print(f"| {removal} | {method} | {' | '.join(said)} |", flush=True)


if __name__ == "__main__":
    main()
