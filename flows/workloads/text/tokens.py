"""Texts as numbers: tokens in one long row, batches of them, and keys of sequences that padding does not change."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flows.errors import BadInput
from flows.workloads.text.library import load_tokenizer, most_tokens

TooLong: TypeAlias = Literal["refuse", "truncate"]
Batch: TypeAlias = dict[str, Tensor]
NO_LIMIT = int(1e30)  # what transformers says of a tokenizer that has none
MULTIPLIER = -0x61C8864680B583EB  # 2^64 / golden ratio: far apart positions get unrelated factors


@dataclass(frozen=True)
class Tokens:
    """Sequences of different lengths.

    Attributes:
        flat: All of them, one after the other.
        starts: Where each begins, and the end `[n + 1]`.
        padding: The token that stands where there is none.
    """

    flat: Tensor
    starts: Tensor
    padding: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], padding: int) -> Tokens:
        """Of sequences as lists."""
        starts = torch.tensor([0, *map(len, rows)]).cumsum(0)
        return cls(torch.tensor([token for row in rows for token in row]), starts, padding)

    @property
    def lengths(self) -> Tensor:
        """Of each sequence `[n]`."""
        return self.starts.diff()

    def row(self, index: int) -> Tensor:
        """One sequence `[t]`."""
        return self.flat[self.starts[index] : self.starts[index + 1]]

    def padded(self, rows: Tensor) -> Batch:
        """Some sequences as `input_ids` and `attention_mask`, as wide as the longest `[B, T]`."""
        return padded([self.row(index) for index in rows.tolist()], self.padding)


def padded(rows: Sequence[Tensor], padding: int) -> Batch:
    """Sequences as `input_ids` and `attention_mask` `[B, T]`."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    return {"input_ids": tokens, "attention_mask": mask.long()}


def keys_of(batch: Batch) -> Tensor:
    """A number for each sequence `[B]`, int64, the same however far it is padded."""
    tokens, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu()
    factors = (torch.arange(tokens.shape[1]) + 1) * MULTIPLIER  # all of it wraps around, as a hash may
    factors = (factors ^ (factors >> 29)) * MULTIPLIER | 1
    return ((tokens + 1) * mask * factors).sum(1)


def set_shares(rows: Sequence[NDArray[np.int64]]) -> list[float]:
    """A number from 0 to 1 for each sequence, by which it is dealt to a set: alike texts to the same one."""
    digests = (hashlib.sha256(row.astype("<i8").tobytes()).digest() for row in rows)
    return [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests]


def tokenized(
    texts: Sequence[str], places: Sequence[str], folder: Path, max_length: int, too_long: TooLong
) -> tuple[list[NDArray[np.int64]], int]:
    """The tokens of each text, and the token for padding.

    Args:
        texts: Not empty.
        places: How a message names each.
        folder: Of the model and its tokenizer.
        max_length: Most tokens, with those that the tokenizer adds.
        too_long: What becomes of a text with more.

    Raises:
        BadInput: Texts are too long, or the model takes fewer tokens.
    """
    known = most_tokens(folder)  # first: a tokenizer, too, is found by the model's configuration
    tokenizer = load_tokenizer(folder)
    limit = min(tokenizer.model_max_length, known or NO_LIMIT)
    if max_length > limit:
        raise BadInput(f"max_length = {max_length}: the model of {folder} takes at most {limit} tokens")
    found = tokenizer(list(texts))["input_ids"]
    longer = [index for index, row in enumerate(found) if len(row) > max_length]
    if longer and too_long == "refuse":
        longest = max(longer, key=lambda index: len(found[index]))
        takes = f" (this model takes {limit})" if limit < NO_LIMIT else ""
        raise BadInput(
            f"{len(longer):,} of {len(found):,} texts have more than max_length = {max_length} tokens (the longest: "
            f"{len(found[longest]):,}, {places[longest]}): raise max_length{takes}, shorten them, "
            "or set too_long = 'truncate'"
        )
    if longer:
        cut = tokenizer([texts[index] for index in longer], truncation=True, max_length=max_length)["input_ids"]
        for index, row in zip(longer, cut):
            found[index] = row
    return [np.asarray(row, dtype=np.int64) for row in found], int(tokenizer.pad_token_id)
