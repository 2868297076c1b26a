"""Influence on a small language model, ours beside kronfluence's: `python -m tests.benchmarks.texts [PEERS_PYTHON]`.

240 texts of tests/flows/little_lm.py, 60 queries. LDS: rank correlation of predicted and real query losses over 32
random halves x 2 models each; of each method's dampings that one is taken whose LDS on 16 other halves, of one model
each, is highest. Without the interpreter that has the peers our rows alone are printed. Then the memory that a text of
512 tokens takes while it is scored: what its factors and logits come to, and what the process grew by.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from influence import EKFAC, Curvature, Damping, Fisher, Identity, Influence, Reader, Task, linear_blocks
from influence.validation import lds, noise_ceiling
from tests.benchmarks.peak import status
from tests.flows.little_lm import Batch, Little, LittleLM, Texts

TEXTS, QUERIES, BATCH = 240, 60, 32
HALVES, MODELS, TUNING = 32, 2, 16
EPOCHS, RATE, DECAY = 20, 1e-2, 0.1
DAMPINGS = (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
LONG, WORDS = 512, 8192
WORKLOAD = LittleLM()
TASK: Task[Batch] = Task(WORKLOAD.logits, WORKLOAD.targets)


class Handed(TypedDict):
    """A model and what a user can afford to choose a damping by, as they are kept in a file."""

    weights: dict[str, Tensor]
    halves: Tensor  # [M, n], bool
    losses: Tensor  # of a model on each half, [M, m]


@dataclass(frozen=True)
class Row:
    """One method: its damping, LDS and CPU seconds of one fit with all pairs."""

    name: str
    damping: float
    lds: float
    seconds: float


def linear(model: nn.Module) -> list[str]:
    """The layers that both sides take."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def chosen(name: str, handed: Handed, truth: Handed, score: Callable[[nn.Module, float], Tensor]) -> Row:
    """Try every damping, and judge the best by other halves."""
    tried: list[tuple[float, float, float, Tensor]] = []
    for damping in DAMPINGS:
        started, model = time.process_time(), Little()
        model.load_state_dict(handed["weights"])
        found = score(model.eval(), damping).double()
        seconds = time.process_time() - started
        tried.append((float(lds(found, handed["halves"], handed["losses"]).mean()), damping, seconds, found))
    _, damping, seconds, found = max(tried, key=lambda one: one[0])
    return Row(name, damping, float(lds(found, truth["halves"], truth["losses"]).mean()), seconds)


def problem() -> tuple[Handed, Handed, float]:
    """The model on all texts, halves to choose by, halves to judge by, and the LDS that these allow for."""
    texts, queries = WORKLOAD.points(), Texts(10_000, QUERIES)
    asked = WORKLOAD.collate(queries.samples)

    def losses(rows: Tensor, seed: int) -> Tensor:
        return WORKLOAD.loss(_trained(texts, rows, seed), asked).detach().double()

    def of(first: int, count: int, models: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(first)
        halves = torch.stack([torch.randperm(TEXTS, generator=generator) < TEXTS // 2 for _ in range(count)])
        rows = [half.nonzero()[:, 0] for half in halves]
        each = [torch.stack([losses(one, first + 1 + seed) for seed in range(models)]) for one in rows]
        return halves, torch.stack(each)  # [M, R, m]

    weights = _trained(texts, torch.arange(TEXTS), 0).state_dict()
    (some, rough), (others, fine) = of(1000, TUNING, 1), of(2000, HALVES, MODELS)
    handed = Handed(weights=weights, halves=some, losses=rough.mean(1))
    truth = Handed(weights=weights, halves=others, losses=fine.mean(1))
    return handed, truth, float(noise_ceiling(fine).mean())


def _trained(texts: Texts, rows: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = WORKLOAD.model()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    for _ in range(EPOCHS):
        for part in rows[torch.randperm(len(rows))].split(BATCH):
            optimizer.zero_grad()
            WORKLOAD.loss(model, WORKLOAD.collate([texts[row] for row in part.tolist()])).mean().backward()
            optimizer.step()
    return model.eval()


def ours(curvature: type[EKFAC] | type[Identity], fisher: Fisher) -> Callable[[nn.Module, float], Tensor]:
    """All pairs by the public engine."""

    def score(model: nn.Module, damping: float) -> Tensor:
        blocks = linear_blocks(model)
        texts, queries = WORKLOAD.points(), Texts(10_000, QUERIES)
        train = [WORKLOAD.collate(texts.samples[row : row + BATCH]) for row in range(0, TEXTS, BATCH)]
        made: Curvature = curvature(blocks)
        with Influence(model, TASK, made, blocks, fisher) as influence:
            influence.fit(train, Damping("absolute", damping))
            return influence.pairs(train, [WORKLOAD.collate(queries.samples)], own=False).influence

    return score


def memory() -> str:
    """Of texts of 512 tokens in a transformer of one block of width 256 over 8,192 words, one sampled label each."""
    torch.manual_seed(0)
    width, texts = 256, 8
    model = nn.Sequential(
        nn.Embedding(WORDS, width),
        nn.Linear(width, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, width),
        nn.Linear(width, WORDS, bias=False),
    )
    blocks = linear_blocks(model)
    tokens = torch.randint(WORDS, (texts, LONG))
    factors = 4 * LONG * sum(inner + 2 * outer for outer, inner in (block.weight_shape for block in blocks))
    task: Task[Tensor] = Task(lambda model, batch: model(batch), lambda batch: batch)
    with Reader(model, task, blocks, Fisher("sampled")) as reader:
        reader.train(tokens[:1], 0, torch.arange(1))
        before = status("VmHWM")
        reader.train(tokens, 1, torch.arange(texts))
        grown = (status("VmHWM") - before) / 1024 / (texts - 1)
    return (
        f"a text of {LONG} tokens: {factors / 2**20:.0f} MB of factors, {4 * LONG * WORDS / 2**20:.0f} MB a copy of "
        f"its logits; {grown:.0f} MB at the most while it is read"
    )


def main() -> None:
    """Print the table and the memory."""
    torch.set_num_threads(1)
    print(memory(), flush=True)
    handed, truth, ceiling = problem()
    rows = [
        chosen("Tamis, EK-FAC, sampled", handed, truth, ours(EKFAC, Fisher("sampled"))),
        chosen("Tamis, EK-FAC, empirical", handed, truth, ours(EKFAC, Fisher("empirical"))),
        chosen("Tamis, gradient dot", handed, truth, ours(Identity, Fisher("sampled"))),
    ]
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as folder:
            given, found = Path(folder, "given.pt"), Path(folder, "found.pt")
            torch.save([handed, truth], given)
            subprocess.run([sys.argv[1], "-m", "tests.benchmarks.peer_texts", str(given), str(found)], check=True)
            rows += [Row(**one) for one in torch.load(found)]
    print(f"noise ceiling {ceiling:.3f}\n\n| method | damping | LDS | CPU s |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.name} | {row.damping:g} | {row.lds:.3f} | {row.seconds:.2f} |")


if __name__ == "__main__":
    main()
