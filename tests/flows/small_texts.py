"""A small text workload: words of a vocabulary, each class with words of its own, some labels wrong."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

CLASSES, OWN, COMMON = 3, 4, 8
WORDS = [
    "<pad>",
    *(f"class{c}-{w}" for c in range(CLASSES) for w in range(OWN)),
    *(f"<b>{w}</b>" for w in range(COMMON)),
]
Batch = tuple[Tensor, Tensor]
Sample = tuple[Tensor, int]


class Lines:
    """Texts of 4 to 9 words, half of them those of the class; the first `wrong` carry the label of the next class."""

    def __init__(self, first: int, count: int, wrong: int = 0) -> None:
        generator = torch.Generator().manual_seed(first)
        self.true = torch.randint(CLASSES, (count,), generator=generator).tolist()
        self.texts = [self._text(label, generator) for label in self.true]
        self.ids = [f"line {row}" for row in range(first, first + count)]
        self.labels = [(label + (row < wrong)) % CLASSES for row, label in enumerate(self.true)]

    def _text(self, label: int, generator: torch.Generator) -> Tensor:
        length = int(torch.randint(2, 5, (), generator=generator))
        own = 1 + OWN * label + torch.randint(OWN, (length,), generator=generator)
        common = 1 + OWN * CLASSES + torch.randint(COMMON, (length + 1,), generator=generator)
        return torch.cat([own, common])[torch.randperm(2 * length + 1, generator=generator)]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Sample:
        return self.texts[index], self.labels[index]


class Net(nn.Module):
    """A layer at each word, a mean over the words, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), 8, padding_idx=0)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        held = (tokens > 0).unsqueeze(-1)
        return self.head((self.layer(self.words(tokens)).tanh() * held).sum(1) / held.sum(1))


class Texts:
    """120 texts, of which the first 12 carry a wrong label."""

    def model(self) -> nn.Module:
        return Net()

    def points(self) -> Lines:
        return Lines(0, 120, 12)

    def queries(self) -> Lines:
        return Lines(10_000, 60)

    def holdout(self) -> Lines:
        return Lines(20_000, 100)

    def collate(self, samples: list[Sample]) -> Batch:
        texts, labels = zip(*samples)
        return pad_sequence(list(texts), batch_first=True), torch.tensor(labels)

    def inputs(self, batch: Batch) -> Tensor:
        return F.one_hot(batch[0], len(WORDS))[..., 1:].sum(1).float()

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0])

    def labels(self, batch: Batch) -> Tensor:
        return batch[1]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(model, batch), batch[1], reduction="none")

    def tokens(self, point_id: str) -> list[str]:
        points = self.points()
        return [WORDS[word] for word in points.texts[points.ids.index(point_id)].tolist()]

    def describe(self, point_id: str) -> str:
        return " ".join(self.tokens(point_id))

    def facets(self) -> dict[str, list[object]]:
        texts = [self.tokens(point) for point in self.points().ids]
        return {"length": [len(text) for text in texts], "words": [set(text) for text in texts]}
