"""Language models, ours beside kronfluence's, and docs/language.md: `python -m tests.benchmarks.texts [PEERS_PYTHON]`.

LDS is that of `text_problem`, memory that of `text_memory`. Without the interpreter that has the peers the page is not
written, and our rows alone are printed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor, nn

from influence import EKFAC, Curvature, Damping, Fisher, Identity, Influence, linear_blocks
from tests.benchmarks import text_memory
from tests.benchmarks.setups import ROOT
from tests.benchmarks.text_problem import (
    BATCH,
    DAMPINGS,
    HALVES,
    QUERIES,
    RETRAININGS,
    TASK,
    TEXTS,
    TUNING,
    WORKLOAD,
    Problem,
    Row,
    Score,
    judged,
    make,
)
from tests.flows.little_lm import Texts
from tests.proof.lds import interval

MODELS = 5
PAGE = """\
# Language models side by side

Measured {day}, torch {torch}, one thread; `make bench-peers`.

{texts} texts that count in steps, a tenth of them shuffled (tests/flows/little_lm.py), {queries} queries, a causal
attention with a hidden layer, all linear layers. LDS: rank correlation of predicted and real query losses over {halves}
random halves x {retrainings} models each, mean over queries; mean over {models} models, each with halves of its own, ±
half of the 95 % t interval. The noise ceiling is {ceiling:.2f}. Of {dampings} dampings from {least} to {most} each
method has that of highest LDS on {tuning} other halves of the first model. CPU seconds: one fit with all pairs, median
over the models.

{table}

bergson (EleutherAI) was not run, and is not in the table. Its README takes models and data sets of the Hugging Face hub
and does not speak of CPUs; its entry points called CUDA whether it was there or not until pull request 419 (August
2026), which reports one example, of self-influence, that has run on a CPU from end to end since.

## Memory of a text of {length} tokens

GPT-2 of width {width} with eager attention, on its default blocks, one sampled label at every token. What a text takes
is what a fresh process grows by for each of seven texts more that are read together. Factors F: for each block 4 T
(inputs + 2 x outputs) bytes; attention A: 4 T² bytes a head and layer; logits L: 4 T V bytes. Autograd keeps about
twice the factors beside them.

{memory}
"""


def ours(curvature: type[EKFAC] | type[Identity], fisher: Fisher) -> Score:
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


def peers(problem: Problem, interpreter: str) -> list[Row]:
    """kronfluence's rows, by the interpreter that has it."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "given.pt"), Path(folder, "found.pt")
        torch.save(problem, given)
        subprocess.run([interpreter, "-m", "tests.benchmarks.peer_texts", str(given), str(found)], check=True)
        return [Row(**one) for one in torch.load(found)]


def table(rows: Sequence[Row]) -> str:
    """Markdown, best first."""
    lines = ["| method | damping | LDS | CPU s |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda one: -mean(one.lds)):
        damping = "" if "gradient dot" in row.name else f"{row.damping:g}"
        lines.append(f"| {row.name} | {damping} | {interval(row.lds)} | {median(row.seconds):.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the page."""
    torch.set_num_threads(1)
    problem, ceilings = make(MODELS)
    sampled, given = Fisher("sampled"), Fisher("empirical")
    rows = [
        judged("**Tamis**, EK-FAC, sampled labels", problem, ours(EKFAC, sampled)),
        judged("**Tamis**, EK-FAC, given labels", problem, ours(EKFAC, given)),
        judged("**Tamis**, gradient dot", problem, ours(Identity, sampled), [1.0]),
    ]
    if len(sys.argv) == 1:
        print(f"noise ceiling {mean(ceilings):.3f}\n\n{table(rows)}")
        return
    page = PAGE.format(
        day=date.today().isoformat(),
        torch=torch.__version__.partition("+")[0],
        texts=TEXTS,
        queries=QUERIES,
        halves=HALVES,
        retrainings=RETRAININGS,
        models=MODELS,
        tuning=TUNING,
        dampings=len(DAMPINGS),
        least=f"{DAMPINGS[0]:.5f}",
        most=DAMPINGS[-1],
        ceiling=mean(ceilings),
        table=table([*rows, *peers(problem, sys.argv[1])]),
        length=text_memory.LENGTH,
        width=text_memory.WIDTH,
        memory=text_memory.table(),
    )
    (ROOT / "docs" / "language.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
