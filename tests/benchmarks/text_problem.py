"""Small language models, and what scores of their texts are judged by, for `tests.benchmarks.texts` and its peers.

240 texts of tests/flows/little_lm.py, 60 queries. LDS: rank correlation of predicted and real query losses over 32
random halves x 2 models each. Of a method's dampings that one is taken for all models whose LDS on the first of them,
by 16 other halves of one model each, is highest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from influence import Task
from influence.validation import lds, noise_ceiling
from tests.flows.little_lm import Batch, Little, LittleLM, Texts

TEXTS, QUERIES, BATCH = 240, 60, 32
HALVES, RETRAININGS, TUNING = 32, 2, 16
EPOCHS, RATE, DECAY = 20, 1e-2, 0.1
DAMPINGS = (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
WORKLOAD = LittleLM()
TASK: Task[Batch] = Task(WORKLOAD.logits, WORKLOAD.targets)
Weights = dict[str, Tensor]
Score = Callable[[nn.Module, float], Tensor]
"""Influence of all texts on all queries, [n, m], of a model and a damping."""


class Halves(TypedDict):
    """Random halves and what models make of the queries that are trained on them, as they are kept in a file."""

    halves: Tensor  # [M, n], bool
    losses: Tensor  # the mean over models, [M, m]


class Problem(TypedDict):
    """All that is handed to a method, as it is kept in a file."""

    weights: list[Weights]  # of each model
    truths: list[Halves]  # to judge each by
    own: Halves  # of the first model: what a user can afford to choose a damping by


@dataclass(frozen=True)
class Row:
    """One method: its damping, and for every model LDS and CPU seconds of one fit with all pairs."""

    name: str
    damping: float
    lds: list[float]
    seconds: list[float]


def linear(model: nn.Module) -> list[str]:
    """The layers that both sides take."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def judged(name: str, problem: Problem, score: Score, dampings: Sequence[float] = DAMPINGS) -> Row:
    """Try every damping on the first model, and judge the best on all."""
    first = problem["weights"][0]
    tried = [(_quality(_scored(score, first, damping)[0], problem["own"]), damping) for damping in dampings]
    damping = max(tried)[1]
    found = [_scored(score, weights, damping) for weights in problem["weights"]]
    quality = [_quality(pairs, truth) for (pairs, _), truth in zip(found, problem["truths"])]
    return Row(name, damping, quality, [seconds for _, seconds in found])


def make(models: int) -> tuple[Problem, list[float]]:
    """Models on all texts, the halves that they are judged by, and the LDS that these allow for."""
    each = [_truth(2000 + 100 * seed, HALVES, RETRAININGS) for seed in range(models)]
    everyone = torch.arange(TEXTS)
    weights: list[Weights] = [_trained(everyone, seed).state_dict() for seed in range(models)]
    truths = [truth for truth, _ in each]
    problem = Problem(weights=weights, truths=truths, own=_truth(1000, TUNING, 1)[0])
    return problem, [float(noise_ceiling(losses).mean()) for _, losses in each]


def _scored(score: Score, weights: Weights, damping: float) -> tuple[Tensor, float]:
    model = Little()
    model.load_state_dict(weights)
    started = time.process_time()
    found = score(model.eval(), damping).double()
    return found, time.process_time() - started


def _quality(pairs: Tensor, truth: Halves) -> float:
    return float(lds(pairs, truth["halves"], truth["losses"]).mean())


def _truth(first: int, count: int, models: int) -> tuple[Halves, Tensor]:
    """Halves drawn by a seed, with the losses of every model on each of them [M, R, m]."""
    generator = torch.Generator().manual_seed(first)
    halves = torch.stack([torch.randperm(TEXTS, generator=generator) < TEXTS // 2 for _ in range(count)])
    asked = WORKLOAD.collate(Texts(10_000, QUERIES).samples)

    def losses(half: Tensor, seed: int) -> Tensor:
        return WORKLOAD.loss(_trained(half.nonzero()[:, 0], seed), asked).detach().double()

    every = torch.stack([torch.stack([losses(half, first + 1 + one) for one in range(models)]) for half in halves])
    return Halves(halves=halves, losses=every.mean(1)), every


def _trained(rows: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model, texts = WORKLOAD.model(), WORKLOAD.points()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    for _ in range(EPOCHS):
        for part in rows[torch.randperm(len(rows))].split(BATCH):
            optimizer.zero_grad()
            WORKLOAD.loss(model, WORKLOAD.collate([texts[row] for row in part.tolist()])).mean().backward()
            optimizer.step()
    return model.eval()
