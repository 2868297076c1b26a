"""Texts and a causal language model: a workload without code.

One text is one point, and its loss the mean over its tokens. The model is a folder's, or a new one of a
configuration, trained here from nothing. Of completions after prompts the prompt has no loss. Training takes the whole
model or its last layers; those below then run once (`frozen`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flows.errors import BadInput
from flows.workload import Home
from flows.workloads.sequences import (
    BYTES,
    Bytes,
    Columns,
    Encoded,
    Pretrained,
    Row,
    Tokenizer,
    encode,
    kept_tokens,
    read,
    share,
)
from flows.workloads.text.adapters import adapted, lora_of
from flows.workloads.text.encoder import logits_of
from flows.workloads.text.frozen import Frozen, digest_of, frozen_of
from flows.workloads.text.layers import upper_of
from flows.workloads.text.library import faults, library
from flows.workloads.text.places import file_of, model_folder, tokenizer_place
from flows.workloads.text.sets import facets_of_rows
from flows.workloads.text.tokens import Tokens
from influence.tokens import IGNORED, point_losses

Batch: TypeAlias = dict[str, Tensor]
Text: TypeAlias = tuple[Row, Encoded]
SEEN = 8
"""Tokens of the text by which a model is asked whether it sees the future; an influence fades with more."""
ATTENTION = "eager"  # torch's fused attention has no forward derivative, which the probe takes


class TextSet(torch.utils.data.Dataset[Batch]):
    """One set of texts.

    Args:
        texts: Each with its tokens, and how many from the first are not learned.

    Attributes:
        encoded: Their tokens.
        lengths: In tokens.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        rows = [row for row, _ in texts]
        self.ids: list[Any] = [row.id for row in rows]
        groups = [row.group for row in rows]
        self.groups = groups if any(group is not None for group in groups) else None
        self._rows = {row.id: row for row in rows}
        self.encoded = [tokens for _, (tokens, _) in texts]
        self._prompts = [prompt for _, (_, prompt) in texts]
        self.lengths = [len(tokens) for tokens in self.encoded]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Batch:
        return {"input_ids": torch.tensor(self.encoded[index]), "prompt": torch.tensor(self._prompts[index])}

    def text(self, point_id: int | str) -> str:
        """A text after its source and time, a prompt and its completion on lines of their own."""
        row = self._rows[point_id]
        return "\n".join(filter(None, (row.seen and f"[{row.seen}]", row.prompt, row.text)))

    def tokens(self, point_id: int | str) -> list[int]:
        """Of one text, as many as it has positions in a batch of its own."""
        return self.encoded[self.ids.index(point_id)]

    def facets(self) -> dict[str, Sequence[Any]]:
        """Length in tokens, source and time where they are known."""
        rows = [self._rows[one] for one in self.ids]
        sources, times = [row.source for row in rows], [row.timestamp for row in rows]
        return facets_of_rows(self.lengths, sources if any(sources) else None, times if any(times) else None)


class CausalLM:
    """Texts, and a model that foretells each next token.

    Args:
        home: Where the TOML and the cache are.
        data: File of the train set, and of the sets that have no file: JSONL, Parquet, CSV or TSV.
        model: Folder that save_pretrained wrote, `package:NAME/folder/in/it`, or a name on the hub.
        config: Instead of it a new model's: `model_type` and whatever else its configuration takes.
        train_layers: Layers of a model that are trained, from the last, with the final norm and the output layer, which
            stays as it is where it is the table of words, too; default: the whole model.
        lora: A model's weights stay as they are, and adapters are trained: keys of peft's LoraConfig (`adapters.Lora`).
        tokenizer: Folder, tokenizer.json or name on the hub; default: the model's, or `bytes` for a new model.
        queries: File of the query set, holdout: of the holdout set; default: drawn from the data.
        holdout: See queries.
        text: Column of texts; further columns: prompt and completion in its place; id (default: the text's hash);
            group; source; timestamp.
        prompt: See text.
        completion: See text.
        id: See text.
        group: See text.
        source: See text.
        timestamp: See text.
        max_length: Most tokens of a text.
        query_share: Of the data that is drawn for the query set, holdout_share: for the holdout set.
        holdout_share: See query_share.
        packing: Refused: texts that share a row of a batch would see each other.
    """

    def __init__(
        self,
        home: Home,
        data: str,
        model: str = "",
        config: Mapping[str, Any] | None = None,
        train_layers: int | None = None,
        lora: Mapping[str, Any] | None = None,
        tokenizer: str = "",
        queries: str = "",
        holdout: str = "",
        text: str = "text",
        prompt: str = "",
        completion: str = "",
        id: str = "",
        group: str = "",
        source: str = "",
        timestamp: str = "",
        max_length: int = 512,
        query_share: float = 0.1,
        holdout_share: float = 0.2,
        packing: bool = False,
    ) -> None:
        _check_options(packing, prompt, completion)
        _check_model(model, config, {"lora": lora, "train_layers": train_layers})
        self._trained, self._lora, self._cache = train_layers, lora_of(lora), home.cache
        self._looks_back = False  # asked of the first model
        self._folder, self._settings = (model_folder(model, home.folder) if model else None), dict(config or {})
        columns = Columns(completion or text, prompt, id, group, source, timestamp)
        self._tokenizer = _tokenizer(home.folder, self._folder, tokenizer)
        self._check_length(max_length)
        files = {"train": data, "query": queries, "holdout": holdout}
        rows = {name: read(file_of(file, home.folder), columns) for name, file in files.items() if file}
        texts = {
            name: list(zip(own, encode(own, self._tokenizer, max_length, home.cache))) for name, own in rows.items()
        }
        texts |= _dealt(texts["train"], {"query": query_share, "holdout": holdout_share}, texts)
        self._kept = [kept_tokens(own, self._tokenizer, home.cache) for own in rows.values() if self._tokenizer.files]
        self._sets = {name: TextSet(own) for name, own in texts.items()}

    def model(self) -> nn.Module:
        """The folder's weights, or a new model drawn from torch's global seed.

        Raises:
            BadInput: There can be none, or it sees the tokens that it is to foretell.
        """
        made, layers = self._whole(), None
        if not self._looks_back:
            self._refuse_foresight(made)
            self._looks_back = True
        if self._trained is not None:
            made, layers = upper_of(made, self._trained)
        made.train()  # a folder's is not
        if self._lora is None:
            return made
        return adapted(made, self._lora, self._config().model_type, "CAUSAL_LM", layers=layers)

    def points(self) -> TextSet:
        """The train set."""
        return self._sets["train"]

    def queries(self) -> TextSet:
        """The texts that influence is measured on."""
        return self._sets["query"]

    def holdout(self) -> TextSet:
        """The texts that judge promotion."""
        return self._sets["holdout"]

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """Filled up on the right to the longest: `input_ids`, `attention_mask` and `targets` `[B, T]`."""
        rows = [sample["input_ids"] for sample in samples]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        places, lengths = torch.arange(tokens.shape[1]), torch.tensor([len(row) for row in rows])[:, None]
        prompts = torch.stack([sample["prompt"] for sample in samples])[:, None]
        learned = (places + 1 >= prompts) & (places + 1 < lengths)  # of the tokens that follow
        targets = tokens.roll(-1, 1).where(learned, IGNORED)
        return {"input_ids": tokens, "attention_mask": (places < lengths).long(), "targets": targets}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of each next token `[B, T, V]`."""
        tokens, mask = batch["input_ids"], batch["attention_mask"]
        if self._trained is None:
            return logits_of(model, input_ids=tokens, attention_mask=mask, use_cache=False)
        enters = self._frozen.hidden(batch).to(tokens.device)
        return logits_of(model, inputs_embeds=enters, attention_mask=mask, use_cache=False)

    def targets(self, batch: Batch) -> Tensor:
        """The token that follows at each position, -100 where none does or none is learned `[B, T]`."""
        return batch["targets"]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nats per token `[B]`."""
        return point_losses(self.logits(model, batch), batch["targets"])

    def facets(self) -> Mapping[str, Sequence[Any]]:
        """Length in tokens, source and time where they are known, of each train point."""
        return self._sets["train"].facets()

    def tokens(self, point_id: int | str) -> list[str]:
        """A text for each position of a train point."""
        return [self._tokenizer.shown(token) for token in self._sets["train"].tokens(point_id)]

    def describe(self, point_id: int | str) -> str:
        """A train text."""
        return self._sets["train"].text(point_id)

    def describe_query(self, query_id: int | str) -> str:
        """A query's text."""
        return self._sets["query"].text(query_id)

    def cached(self) -> list[Path]:
        """The tokens, and what the frozen layers make of them."""
        return self._kept if self._trained is None else [*self._kept, self._frozen_folder]

    def _whole(self) -> nn.Module:
        auto = library("transformers").AutoModelForCausalLM
        settings = {"attn_implementation": ATTENTION}
        try:
            made: nn.Module = (
                auto.from_config(self._config(), **settings).float()
                if self._folder is None
                else auto.from_pretrained(
                    self._folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, **settings
                )
            )
        except faults() as error:
            raise self._unfit(error) from error
        return made

    @cached_property
    def _frozen(self) -> Frozen:
        """Of all sets."""
        return frozen_of(self._frozen_folder, self._whole, self._trained, self._tokens, pooled=False)

    @cached_property
    def _frozen_folder(self) -> Path:
        assert self._folder is not None  # of a new model nothing is kept
        return self._cache / f"frozen-{digest_of(self._folder, self._tokens, ['hidden', self._trained])[:16]}"

    @property
    def _tokens(self) -> Tokens:
        return Tokens.of([tokens for points in self._sets.values() for tokens in points.encoded], padding=0)

    def _config(self) -> Any:
        auto, settings = library("transformers").AutoConfig, dict(self._settings)
        try:
            if self._folder is not None:
                return auto.from_pretrained(self._folder, local_files_only=True)
            return auto.for_model(settings.pop("model_type", ""), **{"vocab_size": self._tokenizer.words} | settings)
        except faults() as error:
            raise self._unfit(error) from error

    def _unfit(self, error: Exception) -> BadInput:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if self._folder is None:
            return BadInput(f"workload.options.config: transformers makes no model of it: {said}")
        return BadInput(f"model {self._folder}: cannot be read: {said}")

    def _check_length(self, max_length: int) -> None:
        config = self._config()
        limit, words = getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)
        if isinstance(limit, int) and max_length > limit:
            raise BadInput(f"max_length = {max_length}: the model takes at most {limit} tokens")
        if isinstance(words, int) and self._tokenizer.words > words:
            raise BadInput(f"the tokenizer has {self._tokenizer.words:,} tokens, the model {words:,}: give the model's")

    def _refuse_foresight(self, model: nn.Module) -> None:
        """Change the last token of a text: no logit before it may move."""
        tokens = self.points()[0]["input_ids"][:SEEN][None]
        other = tokens.clone()
        other[0, -1] = (other[0, -1] + 1) % self._tokenizer.words
        was = model.training
        model.eval()
        with torch.no_grad():  # each alone, so that rounding is the same
            one, same = (
                logits_of(model, input_ids=text, attention_mask=torch.ones_like(text), use_cache=False)[:, :-1]
                for text in (tokens, other)
            )
        model.train(was)
        if bool((one - same).abs().max() > 1e-6 * one.abs().max()):
            raise BadInput(
                f"{type(model).__name__} sees the tokens that it is to foretell: an earlier logit moves with a later "
                "token; give a causal model (is_decoder = true in the configuration of an encoder)"
            )


def _check_options(packing: bool, prompt: str, completion: str) -> None:
    if packing:
        raise BadInput("workload.options.packing = true: one text is one point; leave it out")
    if bool(prompt) != bool(completion):
        raise BadInput("workload.options: prompt and completion name two columns that go together: give both")


def _check_model(model: str, config: Mapping[str, Any] | None, keeping: Mapping[str, object]) -> None:
    """`keeping`: options by which weights stay as they are."""
    if bool(model) == bool(config):
        raise BadInput("workload.options: give either model, a folder or a name, or config, a table with model_type")
    for name, value in keeping.items():
        if value is not None and not model:
            raise BadInput(
                f"workload.options.{name}: the weights of a new model would stay as they were drawn: give a model"
            )


def _tokenizer(home: Path, folder: Path | None, given: str) -> Tokenizer:
    if given == BYTES or (not given and folder is None):
        return Bytes()
    return Pretrained(tokenizer_place(given, home) if given or folder is None else folder)


def _dealt(texts: Sequence[Text], shares: Mapping[str, float], given: Mapping[str, object]) -> dict[str, list[Text]]:
    """The train set, and the sets that have no file of their own, by the hash of each text's tokens."""
    found: dict[str, list[Text]] = {}
    left = list(texts)
    for place, (name, part) in enumerate(shares.items()):
        if name in given:
            continue
        low = sum(list(shares.values())[:place])
        if not 0 < part < 1 or low + part >= 1:
            raise BadInput(f"workload.options.{name}_share = {part}: give shares above 0 that leave texts to train on")
        found[name] = [text for text in left if low <= share(text[1][0]) < low + part]
        left = [text for text in left if not low <= share(text[1][0]) < low + part]
        if not found[name]:
            raise BadInput(f"no text is drawn for the {name} set: raise {name}_share, or give a file")
    return found | {"train": left}
