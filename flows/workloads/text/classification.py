"""Texts with labels and a Hugging Face model: a workload without code.

Training takes either the whole model or its last layers and the head; the layers below run once (`frozen`). The
out-of-fold models train a head alone, on the features of the pretrained encoder, which no label has touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from flows.workload import Home
from flows.workloads.label_errors import check_rate, flipped
from flows.workloads.text.adapters import adapted, lora_of
from flows.workloads.text.encoder import Head, build, head_of, logits_of
from flows.workloads.text.frozen import Frozen, digest_of, frozen_of
from flows.workloads.text.layers import base_of, upper_of
from flows.workloads.text.library import load_tokenizer
from flows.workloads.text.places import file_of, model_folder
from flows.workloads.text.prepared import SETS, Columns, Prepared, Spec, prepared, tokens_of
from flows.workloads.text.sets import TextSet, collated
from flows.workloads.text.tokens import Batch, TooLong
from storage.points import PointId

HEAD_ALONE: Mapping[str, Any] = {"epochs": 10, "learning_rate": 1e-3, "schedule": "linear"}
"""How a linear head is trained on features of unit variance, whatever the fine-tuning's rates are."""


class TextClassification:
    """Labelled texts and an encoder with a head.

    Args:
        home: Where the TOML and the cache are.
        data: File of the train set, and of the sets that have no file: Parquet, JSONL, CSV or TSV.
        model: Folder that save_pretrained wrote, `package:NAME/folder/in/it`, or a name on the hub.
        queries: File of the query set, holdout: of the holdout set; default: drawn from the data.
        holdout: See queries.
        text: Column of texts; further columns: label; id (default: the text's hash); group; source; timestamp; truth,
            the true labels where they are known.
        label: See text.
        id: See text.
        group: See text.
        source: See text.
        timestamp: See text.
        truth: See text.
        labels: What the classes are called, in order; default: as the train set has them, sorted.
        max_length: Most tokens of a text.
        too_long: `refuse` a longer one, or `truncate` it.
        head: `model`, that of AutoModelForSequenceClassification, or `mean`, a linear layer on the mean hidden state.
        train_layers: Layers that are trained, from the last, besides the head; default: the whole model.
        lora: Their weights stay as they are, and adapters are trained: keys of peft's LoraConfig (`adapters.Lora`).
        query_share: Of the data that is drawn for the query set, holdout_share: for the holdout set.
        holdout_share: See query_share.
        flips: Share of the train points that are given a random wrong label, to try Tamis out.
        seed: Of these.
    """

    def __init__(
        self,
        home: Home,
        data: str,
        model: str,
        queries: str = "",
        holdout: str = "",
        text: str = "text",
        label: str = "label",
        id: str = "",
        group: str = "",
        source: str = "",
        timestamp: str = "",
        truth: str = "",
        labels: Sequence[int | str] = (),
        max_length: int = 128,
        too_long: TooLong = "refuse",
        head: Head = "model",
        train_layers: int | None = None,
        lora: Mapping[str, Any] | None = None,
        query_share: float = 0.1,
        holdout_share: float = 0.2,
        flips: float = 0.0,
        seed: int = 0,
    ) -> None:
        shares = {"query": query_share, "holdout": holdout_share}
        _check_options(too_long, head, shares, flips, truth)
        self._folder, self._cache = model_folder(model, home.folder), home.cache
        self._head, self._trained, self._lora = head, train_layers, lora_of(lora)
        files = {"train": data, "query": queries, "holdout": holdout}
        spec = Spec(
            files={name: file_of(given, home.folder) for name, given in files.items() if given},
            columns=Columns(text, label, id, group, source, timestamp, truth),
            labels=tuple(labels),
            model=self._folder,
            max_length=max_length,
            too_long=too_long,
            shares={name: share for name, share in shares.items() if not files[name]},
        )
        self._read(prepared(spec, home.cache), flips, seed)

    def _read(self, data: Prepared, flips: float, seed: int) -> None:
        """The sets, the given labels, and the true ones where they are known."""
        self._data, self._tables = data, {name: data.of(name) for name in SETS}
        train = self._tables["train"]
        self._given = _labels(train, "label")
        known = bool(train["truth"].null_count == 0)
        if known or flips:
            self._true = _labels(train, "truth") if known else self._given
            self.truth = self._truth  # only where it is known
        if flips:
            everyone, generator = torch.arange(len(self._given)), torch.Generator().manual_seed(seed)
            self._given = flipped(self._given, everyone, flips, len(data.classes), generator)
        self.collate = partial(collated, padding=data.padding)

    def model(self) -> nn.Module:
        """The encoder's weights as they are in the folder, and a head; adapters, where these are trained."""
        model, layers = self._whole(), None
        if self._trained is not None:
            model, layers = upper_of(model, self._trained)
        if self._lora is None:
            return model
        task = "SEQ_CLS" if self._head == "model" else None
        return adapted(model, self._lora, base_of(model).config.model_type, task, head_of(model), layers)

    def points(self) -> TextSet:
        """The train set."""
        return self._train

    def queries(self) -> TextSet:
        """The texts that influence is measured on."""
        return self._set("query")

    def holdout(self) -> TextSet:
        """The texts that judge promotion."""
        return self._set("holdout")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the given label `[B]`."""
        return cross_entropy(self.logits(model, batch), batch["labels"], reduction="none")

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Class scores `[B, C]`."""
        if self._trained is None:
            return logits_of(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        enters = self._frozen.hidden(batch).to(batch["input_ids"].device)
        return logits_of(model, inputs_embeds=enters, attention_mask=batch["attention_mask"])

    def labels(self, batch: Batch) -> Tensor:
        """Given labels `[B]`."""
        return batch["labels"]

    def inputs(self, batch: Batch) -> Tensor:
        """Features of the pretrained encoder, of length 1 `[B, H]`: near for cosine similarity."""
        return normalize(self.features(batch), dim=1)

    def features(self, batch: Batch) -> Tensor:
        """The mean of the pretrained encoder's last hidden states `[B, H]`."""
        return self._frozen.pooled(batch).to(batch["input_ids"].device)

    def for_folds(self) -> tuple[HeadAlone, Mapping[str, Any]]:
        """A head on the pretrained encoder's features."""
        return HeadAlone(self), HEAD_ALONE

    def describe(self, point_id: PointId) -> str:
        """The text of a train point."""
        return self._train.text(point_id)

    def describe_query(self, query_id: PointId) -> str:
        """The text of a query."""
        return self._queries.text(query_id)

    def facets(self) -> Mapping[str, Sequence[Any]]:
        """Length in tokens, source and time where they are known, and words of each train point."""
        return self._train.facets()

    def tokens(self, point_id: PointId) -> list[str]:
        """A text for each position of a train point, special tokens included."""
        return [self._tokenizer.decode([token]) for token in self._train.tokens(point_id)]

    def cached(self) -> list[Path]:
        """The tokenised texts, and what the frozen layers make of them."""
        return [self._data.file, self._frozen_folder]

    def _truth(self) -> Mapping[PointId, int]:
        """The true labels of the train points."""
        return dict(zip(self._train.ids, self._true.tolist()))

    @property
    def classes(self) -> tuple[str, ...]:
        """What the classes are called."""
        return self._data.classes

    @property
    def width(self) -> int:
        """Of the features."""
        return self._frozen.size

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._folder)

    @cached_property
    def _train(self) -> TextSet:
        return TextSet(self._tables["train"], self._given, self._data.padding)

    @cached_property
    def _queries(self) -> TextSet:
        return self._set("query")

    def _set(self, name: str) -> TextSet:
        return TextSet(self._tables[name], _labels(self._tables[name], "label"), self._data.padding)

    def _whole(self) -> nn.Module:
        return build(self._folder, self._head, len(self._data.classes), self._data.padding)

    @cached_property
    def _frozen(self) -> Frozen:
        """Of all sets."""
        tokens = tokens_of(self._data.table, self._data.padding)
        return frozen_of(self._frozen_folder, self._whole, self._trained, tokens)

    @cached_property
    def _frozen_folder(self) -> Path:
        tokens = tokens_of(self._data.table, self._data.padding)
        return self._cache / f"frozen-{digest_of(self._folder, tokens, self._trained)[:16]}"


class HeadAlone:
    """The same points, and a linear head on features that stay.

    Args:
        whole: The workload that has them.
    """

    def __init__(self, whole: TextClassification) -> None:
        self._whole = whole
        self.collate, self.inputs, self.labels = whole.collate, whole.inputs, whole.labels
        self.points, self.queries, self.holdout = whole.points, whole.queries, whole.holdout

    def model(self) -> nn.Module:
        """Features of unit variance, and a linear layer."""
        width = self._whole.width
        return nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, len(self._whole.classes)))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Class scores `[B, C]`."""
        found: Tensor = model(self._whole.features(batch))
        return found

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the given label `[B]`."""
        return cross_entropy(self.logits(model, batch), batch["labels"], reduction="none")


def _check_options(too_long: str, head: str, shares: Mapping[str, float], flips: float, truth: str) -> None:
    check_rate(flips)
    if too_long not in get_args(TooLong):
        raise ValueError(f"too_long = {too_long!r}: give 'refuse' or 'truncate'")
    if head not in get_args(Head):
        raise ValueError(f"head = {head!r}: give 'model' or 'mean'")
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise ValueError(
            f"query_share, holdout_share = {', '.join(map(str, shares.values()))}: give shares that leave some"
        )
    if truth and flips:
        raise ValueError("truth and flips: the true labels are those of a column, or those before the flips")


def _labels(table: pa.Table, column: str) -> Tensor:
    return torch.tensor(table[column].to_pylist(), dtype=torch.int64)
