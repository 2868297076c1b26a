"""A model's outcome on a set is each point's own, however the points are put together and dealt."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flows.errors import BadInput
from flows.ranks.outcome import Outcome
from flows.ranks.rank import Alone
from flows.workload import Batches, collate_of
from flows.workloads.text.classification import TextClassification
from tests.flows.texts import save_bert, sentences, texts_of


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> TextClassification:
    folder = tmp_path_factory.mktemp("outcome")
    return texts_of(folder, save_bert(folder / "bert"), sentences(400), holdout_share=0.5)


class Watched:
    """A workload that remembers the batches its model was asked."""

    def __init__(self, workload: TextClassification) -> None:
        self._workload, self.asked = workload, list[Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workload, name)

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.asked.append(batch["attention_mask"])
        return self._workload.logits(model, batch)


def test_each_text_gets_the_loss_that_it_has_alone_on_one_rank_and_on_two(texts: TextClassification) -> None:
    model, points, shown = texts.model().eval(), texts.holdout(), list[tuple[str, int, int]]()
    whole = Outcome("holdout", points, texts, Alone(lambda *step: shown.append(step)))
    halves = [Outcome("holdout", points, texts, Alone(lambda *_: None, index, 2)) for index in range(2)]
    loss, correct = whole.of(model)
    assert (sum(half.of(model) for half in halves) - torch.stack([loss, correct])).abs().max() < 1e-12
    batches, row = Batches(points, collate_of(texts)), {id_: row for row, id_ in enumerate(points.ids)}
    with torch.no_grad():
        for place, id_ in enumerate(whole.manifest.ids):
            alone = batches.take(torch.tensor([row[id_]]))
            assert loss[place] == pytest.approx(float(texts.loss(model, alone)), rel=1e-5)  # float32
            assert correct[place] == float(texts.logits(model, alone).argmax() == points.labels[row[id_]])
    assert shown[:2] == [("asking, holdout set", 0, len(points)), ("asking, holdout set", 64, len(points))]


def test_each_text_is_read_once_beside_others_of_its_length(texts: TextClassification) -> None:
    watched, points = Watched(texts), texts.holdout()
    Outcome("holdout", points, watched, Alone(lambda *_: None)).of(texts.model())  # type: ignore[arg-type]
    assert sum(map(len, watched.asked)) == len(points)
    widths = [mask.shape[1] for mask in watched.asked]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == max(points.lengths) > widths[-1]


def test_lengths_of_other_points_are_refused(texts: TextClassification) -> None:
    points = texts.holdout()
    points.lengths = points.lengths[1:]
    with pytest.raises(BadInput, match=r"`lengths` has \d+ values for \d+ points: give one for each"):
        Outcome("holdout", points, texts, Alone(lambda *_: None))
