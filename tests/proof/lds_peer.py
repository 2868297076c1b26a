"""kronfluence on the same models: `python -m tests.proof.lds_peer CELLS`, in the interpreter that has it.

EK-FAC of Grosse et al. 2023, arXiv 2308.03296, its reference implementation, by its defaults but for the damping: its
own is a tenth of the mean eigenvalue, which is measured too. Its Fisher samples one label for each point.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from kronfluence import Analyzer, FactorArguments, ScoreArguments, prepare_model
from torch import Tensor
from torch.utils.data import TensorDataset

from influence import linear_blocks
from tests.benchmarks.peers import Classification
from tests.proof.lds_models import Given, module

BATCH = 250
HEURISTIC = "kronfluence EK-FAC, its own damping"
DECAY = "kronfluence EK-FAC, damping = weight decay"


def main() -> None:
    """Score with every model that the folder holds; what it holds of scores is not scored again."""
    torch.set_num_threads(1)
    for path in sorted(Path(sys.argv[1]).glob("*-model-*.pt")):
        scores = path.with_name(path.name.replace("-model-", "-peer-"))
        if not scores.exists():
            torch.save(_scores(torch.load(path)), scores)
            print(scores.name, flush=True)


def _scores(given: Given) -> dict[str, Tensor]:
    """Influence [n, m] by each damping, up to the factor 1 / n."""
    torch.manual_seed(given["seed"])
    plain = module(given["layers"], 0)
    points, queries = (TensorDataset(*given[name]) for name in ("points", "queries"))
    asked = Classification([block.name for block in linear_blocks(plain)])
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        analyzer = Analyzer("lds", prepare_model(plain, asked), asked, cpu=True, disable_tqdm=True, output_dir=scratch)
        analyzer.fit_all_factors("f", points, per_device_batch_size=BATCH, factor_args=FactorArguments("ekfac"))
        for name, damping in ((HEURISTIC, None), (DECAY, given["weight_decay"])):
            analyzer.compute_pairwise_scores(
                name, "f", queries, points, len(queries), per_device_train_batch_size=BATCH,
                score_args=ScoreArguments(damping_factor=damping),
            )  # fmt: skip
            found[name] = analyzer.load_pairwise_scores(name)["all_modules"].T.double()  # [n, m]
    return found


if __name__ == "__main__":
    main()
