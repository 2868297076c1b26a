"""What the frozen part of a model makes of each text: run once, kept on disk, looked up by the text's tokens.

Kept are, where lower layers are frozen, the hidden states as they enter the first trained one, float32, in a file that
is mapped into memory; and of a classifier the mean of the pretrained encoder's last hidden states, for nearest
neighbours and the out-of-fold models. A text is found by a hash of its tokens, so that a batch needs to carry nothing
but these.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flows.errors import BadInput
from flows.launch import Progress
from flows.progress import Lines
from flows.workloads.text.encoder import hidden_of, logits_of, mean_of
from flows.workloads.text.layers import base_of, cut, entering, frozen_layers, layers_of, skip
from flows.workloads.text.tokens import Batch, Tokens, keys_of
from storage.errors import StorageError
from storage.files import atomic_folder, sha256_file, sha256_json

logger = logging.getLogger("tamis")
VERSION = 1
"""Of what is kept; another number makes it anew."""
BATCH, POSITIONS = 64, 8192
"""Most texts, and most tokens, that are read at a time."""
SAME = 1e-4  # of the largest value: above what rounding changes, below what another computation does


@dataclass(frozen=True)
class Order:
    """Different sequences of some tokens, shortest first, so that little is padded.

    Attributes:
        rows: One row of the tokens for each `[u]`.
        keys: Of each `[u]`.
        starts: Where the hidden states of each begin, and the end `[u + 1]`.
    """

    rows: Tensor
    keys: Tensor
    starts: Tensor

    @classmethod
    def of(cls, tokens: Tokens) -> Order:
        """Of all that there are; equal sequences count once.

        Raises:
            BadInput: Two different ones have the same key.
        """
        lengths = tokens.lengths
        by_length = lengths.argsort(stable=True)
        keys = torch.cat([keys_of(tokens.padded(part)) for part in by_length.split(1024)])
        first: dict[int, int] = {}
        for row, key in zip(by_length.tolist(), keys.tolist()):
            if not tokens.row(first.setdefault(key, row)).equal(tokens.row(row)):
                raise BadInput("two different texts have the same 64-bit key: leave one of them out")
        rows = torch.tensor(list(first.values()))
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths[rows].cumsum(0)])
        return cls(rows, torch.tensor(list(first)), starts)


class Frozen:
    """What is kept of one model and its texts.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        keys = torch.from_numpy(np.load(folder / "keys.npy"))
        self._keys, self._order = keys.sort()
        self._starts = torch.from_numpy(np.load(folder / "starts.npy"))

    @property
    def size(self) -> int:
        """Of a hidden state."""
        return self._pooled.shape[1]

    def pooled(self, batch: Batch) -> Tensor:
        """The mean of the last hidden states of the pretrained encoder `[B, H]`."""
        return self._pooled[self._places(batch)]

    def hidden(self, batch: Batch) -> Tensor:
        """What enters the first trained layer `[B, T, H]`; 0 where there is no token."""
        mask = batch["attention_mask"].cpu().bool()
        at = self._starts[self._places(batch)][:, None] + torch.arange(mask.shape[1])
        return self._hidden[at.where(mask, 0)] * mask[..., None]

    @cached_property
    def _pooled(self) -> Tensor:
        return torch.from_numpy(np.load(self._folder / "pooled.npy"))

    @cached_property
    def _hidden(self) -> Tensor:
        return torch.from_numpy(np.load(self._folder / "hidden.npy", mmap_mode="c"))  # nobody writes

    def _places(self, batch: Batch) -> Tensor:
        keys = keys_of(batch)
        near = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        if not self._keys[near].equal(keys):
            raise BadInput("a batch holds a text that is in none of the sets: its frozen layers were not run")
        return self._order[near]


def digest_of(folder: Path, tokens: Tokens, settings: Any) -> str:
    """Of a model's files, some texts and what is made of them."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    texts = sha256_json([tokens.flat.tolist(), tokens.starts.tolist()])
    return sha256_json([VERSION, {file.name: sha256_file(file) for file in files}, texts, settings])


def frozen_of(
    folder: Path, build: Callable[[], nn.Module], trained: int | None, tokens: Tokens, pooled: bool = True
) -> Frozen:
    """What is kept in a folder; made where it is not kept yet.

    Args:
        folder: Where.
        build: Makes the model, with all layers.
        trained: How many of its layers are; None where all of the model is.
        tokens: Of the texts.
        pooled: Keep the means of the last hidden states.

    Raises:
        BadInput: The model cannot be entered at a layer.
    """
    if not folder.is_dir():
        with torch.random.fork_rng(devices=[]):
            whole = build()
        make(whole, trained, tokens, folder, pooled)
    return Frozen(folder)


def make(whole: nn.Module, trained: int | None, tokens: Tokens, folder: Path, pooled: bool = True) -> None:
    """Run a pretrained model on all texts and keep what it makes of them; another process may have been faster.

    Args:
        whole: The model, with all layers; changed.
        trained: See frozen_of.
        tokens: See frozen_of.
        folder: New.
        pooled: See frozen_of.
    """
    whole.eval()
    base_of(whole).config.use_cache = False  # a decoder would keep what it needs to write on
    order = Order.of(tokens)
    logger.info("reading %d texts once by the frozen layers, into %s", len(order.rows), folder)
    try:
        with atomic_folder(folder) as draft:
            np.save(draft / "keys.npy", order.keys.numpy())
            np.save(draft / "starts.npy", order.starts.numpy())
            if trained is not None:
                frozen = frozen_layers(whole, trained)
                _check_cut(whole, frozen, tokens.padded(order.rows[[0, -1]]))  # the shortest is padded
                if frozen and not pooled:  # a model that can be without some can be without the others
                    skip(layers_of(whole), range(frozen, frozen + trained))
            _write(whole, trained, tokens, order, draft, pooled)
    except StorageError:
        if not folder.is_dir():
            raise


def _write(whole: nn.Module, trained: int | None, tokens: Tokens, order: Order, draft: Path, pooled: bool) -> None:
    size = base_of(whole).config.hidden_size
    means = torch.empty(len(order.rows), size)
    kept = None
    if trained is not None:
        shape = (int(order.starts[-1]), size)
        kept = np.lib.format.open_memmap(draft / "hidden.npy", mode="w+", dtype=np.float32, shape=shape)
    frozen, show = 0 if trained is None else frozen_layers(whole, trained), Lines()
    longest = int(order.starts.diff().max())
    for places in torch.arange(len(order.rows)).split(max(1, min(BATCH, POSITIONS // longest))):
        show(Progress("running the frozen layers", int(places[0]), len(order.rows)))
        batch = tokens.padded(order.rows[places])
        if kept is None:
            last = hidden_of(whole, batch)
        else:
            enters, last = entering(whole, frozen, batch)
            here = slice(int(order.starts[places[0]]), int(order.starts[places[-1] + 1]))
            kept[here] = enters[batch["attention_mask"].bool()].numpy()
        if pooled:
            means[places] = mean_of(last, batch["attention_mask"])
    if kept is not None:
        kept.flush()
    if pooled:
        np.save(draft / "pooled.npy", means.numpy())


def _check_cut(whole: nn.Module, frozen: int, batch: Batch) -> None:
    """Refuse a model that computes something else without its lowest layers, or nothing at all."""
    with torch.no_grad():
        expected = logits_of(whole, **batch)
        try:
            enters, last = entering(whole, frozen, batch)
            upper = copy.deepcopy(whole)
            layers = layers_of(upper)
            given = {"inputs_embeds": enters, "attention_mask": batch["attention_mask"]}
            found = logits_of(cut(upper, frozen), **given)
            base = base_of(upper).train()  # as it is trained: a dropout beside the layers would be on what is kept
            layers.eval()
            again = base(**given).last_hidden_state
        except (AttributeError, IndexError, RuntimeError, StopIteration, TypeError) as error:  # as its code has it
            raise BadInput(
                f"train_layers: {type(whole).__name__} cannot be entered at layer {frozen} "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); leave the option out to train all "
                "of it"
            ) from error
    if _differ(found, expected) or _differ(again, last):
        raise BadInput(
            f"train_layers: {type(whole).__name__} computes something else when it is entered at layer {frozen}; leave "
            "the option out to train all of it"
        )


def _differ(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() > SAME * expected.abs().max())
