"""A language model whose truth is known: texts count in steps of 1, 2 or 3, and the first of them are shuffled.

A shuffled text teaches that anything may follow anything, so it can only harm.
"""

import torch
from torch import Tensor, nn

from influence import IGNORED, point_losses

WORDS, LONGEST = 23, 12  # the words are 1 … 23, and 0 is padding
PROMPT = 4  # two words of no meaning, the first and the second number: not learned
Batch = tuple[Tensor, Tensor]  # tokens and the targets at their positions, both [B, T]


class Texts(torch.utils.data.Dataset[Tensor]):
    def __init__(self, first: int, count: int, broken: int = 0, backwards: bool = False) -> None:
        generator = torch.Generator().manual_seed(first)

        def drawn(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        self.ids = list(range(first, first + count))
        self.groups = [f"steps of {1 + row % 3}" for row in range(count)]
        self.samples = []
        for row in range(count):
            start, places = drawn(0, WORDS - 1), torch.arange(drawn(6, LONGEST))
            text = 1 + (start + (1 + row % 3) * places) % WORDS
            if row < broken:
                text = text[torch.randperm(len(text), generator=generator)]
            self.samples.append(torch.cat([torch.tensor([drawn(1, WORDS), drawn(1, WORDS)]), text]))  # no two alike
        if backwards:
            for column in (self.ids, self.groups, self.samples):
                column.reverse()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        return self.samples[index]


class Little(nn.Module):
    """One causal attention over words and places, and one hidden layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS + 1, width), nn.Embedding(4 * LONGEST, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, WORDS + 1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))  # [B, T, d]
        later = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
        weights = (self.query(h) @ self.key(h).mT / h.shape[2] ** 0.5).masked_fill(later, -torch.inf).softmax(2)
        h = h + weights @ self.value(h)
        h = h + self.down(self.up(h).relu())
        return self.head(h)  # [B, T, V]


class LittleLM:
    """240 texts, of which the first 24 are shuffled.

    Args:
        broken: How many are.
        padding: Positions that every batch has beyond its longest text.
        backwards: The same train points in the opposite order.
    """

    def __init__(self, broken: int = 24, padding: int = 0, backwards: bool = False) -> None:
        self.broken, self.padding, self.backwards = broken, padding, backwards

    def model(self) -> nn.Module:
        return Little()

    def points(self) -> Texts:
        return Texts(0, 240, self.broken, self.backwards)

    def queries(self) -> Texts:
        return Texts(10_000, 120)

    def holdout(self) -> Texts:
        return Texts(20_000, 90)

    def collate(self, samples: list[Tensor]) -> Batch:
        longest = max(map(len, samples)) + self.padding
        tokens = torch.zeros(len(samples), longest, dtype=torch.int64)
        targets = torch.full_like(tokens, IGNORED)
        for row, text in enumerate(samples):
            tokens[row, : len(text)] = text
            targets[row, PROMPT - 1 : len(text) - 1] = text[PROMPT:]
        return tokens, targets

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0])

    def targets(self, batch: Batch) -> Tensor:
        return batch[1]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return point_losses(self.logits(model, batch), batch[1])

    def describe(self, point_id: int) -> str:
        return " ".join(map(str, Texts(0, 240, self.broken)[point_id].tolist()))
