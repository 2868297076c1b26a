"""kronfluence: Grosse et al. 2023, arXiv 2308.03296, its reference implementation; its Fisher samples one label."""

from __future__ import annotations

import tempfile

import torch
from kronfluence import Analyzer, FactorArguments, ScoreArguments, prepare_model
from torch import Tensor, nn

from tests.benchmarks.peer_problem import Method, Problem, dataset
from tests.benchmarks.peers import Classification

BATCH = 250


def _ekfac(problem: Problem, damping: float) -> Tensor:
    torch.manual_seed(problem.seed)
    named = problem.model.named_modules()
    task = Classification([name for name, one in named if isinstance(one, nn.Linear)])
    train, queries = dataset(problem.train), dataset(problem.queries)
    with tempfile.TemporaryDirectory() as folder:
        model = prepare_model(problem.model, task)
        analyzer = Analyzer("peers", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
        analyzer.fit_all_factors("f", train, per_device_batch_size=BATCH, factor_args=FactorArguments("ekfac"))
        analyzer.compute_pairwise_scores(
            "s", "f", queries, train, len(queries), per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        return analyzer.load_pairwise_scores("s")["all_modules"].T / problem.points


METHODS: dict[str, Method] = {"EK-FAC": _ekfac}
