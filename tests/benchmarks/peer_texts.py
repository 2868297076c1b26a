"""kronfluence on a small language model, for `tests.benchmarks.texts`, in the interpreter that has the peers."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version

import torch
from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from influence import IGNORED, point_losses
from tests.benchmarks.text_problem import BATCH, QUERIES, TEXTS, WORKLOAD, judged, linear
from tests.flows.little_lm import Batch, Texts


class Language(Task):
    """Mean cross-entropy of the targets; drawn labels weigh 1/sqrt(T), which makes the Fisher that of the mean."""

    def __init__(self, blocks: list[str]) -> None:
        self._blocks = blocks

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
        """Sum over texts."""
        logits, targets = model(batch[0]), batch[1]
        if not sample:
            return point_losses(logits, targets).sum()
        learned = targets != IGNORED
        drawn = logits.detach()[learned].softmax(1).multinomial(1)[:, 0]
        losses = point_losses(logits, targets.masked_scatter(learned, drawn))
        return (losses * learned.sum(1).sqrt()).sum()

    def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
        """The loss itself."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        """The blocks."""
        return self._blocks

    def get_attention_mask(self, batch: Batch) -> Tensor:
        """Where there is a word, and no padding."""
        return (batch[0] != 0).long()


def score(model: nn.Module, damping: float) -> Tensor:
    """Influence of all texts on all queries."""
    torch.manual_seed(0)
    texts, queries = WORKLOAD.collate(WORKLOAD.points().samples), WORKLOAD.collate(Texts(10_000, QUERIES).samples)
    task = Language(linear(model))
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_model(model, task)
        analyzer = Analyzer("texts", prepared, task, cpu=True, disable_tqdm=True, output_dir=folder)
        train, asked = TensorDataset(*texts), TensorDataset(*queries)
        analyzer.fit_all_factors("f", train, per_device_batch_size=BATCH, factor_args=FactorArguments("ekfac"))
        analyzer.compute_pairwise_scores(
            "s", "f", asked, train, QUERIES, per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        return analyzer.load_pairwise_scores("s")["all_modules"].T / TEXTS


def main() -> None:
    """Read a problem, write its row."""
    torch.set_num_threads(1)
    name = f"kronfluence {version('kronfluence')}, EK-FAC, sampled labels"
    torch.save([asdict(judged(name, torch.load(sys.argv[1]), score))], sys.argv[2])


if __name__ == "__main__":
    main()
