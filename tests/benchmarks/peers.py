"""The other side: kronfluence and pyDVL on a setup, in our units and by their documented interfaces.

kronfluence: Grosse et al. 2023, arXiv 2308.03296, its reference implementation. pyDVL: the library for data valuation.
Both are run as a user would: whole data sets, one batch size, no option that gives up exactness.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model
from pydvl.influence.torch import CgInfluence, DirectInfluence, EkfacInfluence
from pydvl.influence.torch.base import TorchComposableInfluence
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks.setups import Batch, Data, Setup


@dataclass(frozen=True)
class Scores:
    """What both sides give.

    Attributes:
        pairs: influence of train point i on query q, nats, positive = helpful, [n, m].
        own: self-influence g' H^-1 g, [n]; None where it was not asked for.
    """

    pairs: Tensor
    own: Tensor | None


class Classification(Task):
    """Cross-entropy on the blocks that are named."""

    def __init__(self, blocks: Sequence[str]) -> None:
        self._blocks = list(blocks)

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
        """Sum of the losses, of labels drawn from the model where `sample` asks for them."""
        logits, labels = model(batch[0]), batch[1]
        if sample:
            labels = logits.detach().softmax(1).multinomial(1)[:, 0]
        return cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
        """The loss itself."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        """The blocks."""
        return self._blocks


def kronfluence(setup: Setup, damping: float, batch: int) -> Scores:
    """Fit on the empirical Fisher, every pair, and self-influence."""
    task = Classification(setup.blocks)
    model = prepare_model(copy.deepcopy(setup.model), task)
    train, queries = _dataset(setup.train), _dataset(setup.queries)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("bench", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
        fitting = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        scoring = ScoreArguments(damping_factor=damping)
        analyzer.fit_all_factors("f", train, per_device_batch_size=batch, factor_args=fitting)
        analyzer.compute_pairwise_scores(
            "pairs", "f", queries, train, len(queries), per_device_train_batch_size=batch, score_args=scoring
        )
        analyzer.compute_self_scores("own", "f", train, per_device_train_batch_size=batch, score_args=scoring)
        pairs = analyzer.load_pairwise_scores("pairs")["all_modules"]  # [m, n]
        own = analyzer.load_self_scores("own")["all_modules"]  # [n]
    return Scores(pairs.T / len(train), own)


def pydvl(setup: Setup, damping: float, batch: int) -> Scores:
    """EK-FAC and every pair; its Fisher is its own: one backward of sum_y sqrt(p_y) log p_y for each point."""
    model = copy.deepcopy(setup.model)
    return _pydvl(EkfacInfluence(model, update_diagonal=True, hessian_regularization=damping), setup, batch)


def pydvl_direct(setup: Setup, damping: float) -> Scores:
    """The Hessian itself and every pair."""
    influence = DirectInfluence(copy.deepcopy(setup.model), cross_entropy, regularization=damping)
    return _pydvl(influence, setup, len(setup.train))


def pydvl_cg(setup: Setup, damping: float, tolerance: float) -> Scores:
    """Conjugate gradients on products with the Hessian, all queries together, and every pair."""
    model = copy.deepcopy(setup.model)
    influence = CgInfluence(model, cross_entropy, damping, rtol=tolerance, solve_simultaneously=True)
    return _pydvl(influence, setup, len(setup.train))


def _pydvl(influence: TorchComposableInfluence | EkfacInfluence, setup: Setup, batch: int) -> Scores:
    train, queries = setup.train, setup.queries
    fitted = influence.fit(DataLoader(_dataset(train), batch_size=batch))
    pairs = fitted.influences(queries.inputs, queries.labels, train.inputs, train.labels)  # [m, n]
    return Scores(pairs.detach().T / len(train), None)


def _dataset(data: Data) -> TensorDataset:
    return TensorDataset(data.inputs, data.labels)
