"""Rows of a file as sequences of tokens: whole texts, or completions after prompts that are not learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.errors import BadInput
from flows.workloads.text.columns import ids_of, names_of, texts_of
from flows.workloads.text.files import Rows, read_rows
from flows.workloads.text.library import library, tokenizer_files
from flows.workloads.text.tokens import set_shares
from storage.files import atomic_path, sha256_file, sha256_json

VERSION = 1
"""Of the tokens that are kept; another number makes them anew."""
BYTES = "bytes"
END = 256  # after the 256 bytes
Encoded: TypeAlias = tuple[list[int], int]


class Tokenizer(Protocol):
    """Turns text into tokens."""

    words: int
    """Tokens that there are."""
    end: int | None
    """What ends a text, if anything does."""
    files: Sequence[Path]
    """What it is read from, if anything."""

    def tokens(self, text: str, *, first: bool) -> list[int]:
        """Of a text, or of what goes on after the first part of one."""
        ...

    def shown(self, token: int) -> str:
        """One token as text."""
        ...


class Bytes:
    """The bytes of UTF-8, and an end."""

    words: int = END + 1
    end: int | None = END
    files: Sequence[Path] = ()

    def tokens(self, text: str, *, first: bool) -> list[int]:
        """Of either part alike."""
        return list(text.encode(errors="surrogatepass"))

    def shown(self, token: int) -> str:
        """A part of a longer character has no text of its own, and is shown by its number."""
        return "[end]" if token == END else bytes([token]).decode(errors="backslashreplace")


class Pretrained:
    """A tokenizer of transformers, with the special tokens that it sets before a text.

    Args:
        path: A folder that save_pretrained wrote, or a tokenizer.json.

    Raises:
        BadInput: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        transformers = library("transformers")
        self.files: Sequence[Path] = [path] if path.is_file() else tokenizer_files(path)  # refuses one without
        try:
            if path.is_file():
                self._own = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
            else:
                self._own = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"tokenizer {path}: cannot be read: {' '.join(str(error).split())[:300]}") from error
        if not len(self._own):
            raise BadInput(f"tokenizer {path}: holds no vocabulary: save it there by save_pretrained")
        self.words, self.end = len(self._own), self._own.eos_token_id

    def tokens(self, text: str, *, first: bool) -> list[int]:
        """The special tokens stand before the first part alone; the end is set elsewhere."""
        found: list[int] = self._own(text, add_special_tokens=first)["input_ids"]
        return found[:-1] if first and self.end is not None and found[-1:] == [self.end] else found

    def shown(self, token: int) -> str:
        """Decoded by itself."""
        return str(self._own.decode([token]))


@dataclass(frozen=True)
class Row:
    """One text.

    Attributes:
        place: How a message names it.
        prompt: Not learned; empty for a whole text.
        source: Where it is from, where that is known.
        timestamp: When it was written, where that is known.
    """

    place: str
    prompt: str
    text: str
    id: int | str
    group: str | None
    source: str | None
    timestamp: str | None

    @property
    def seen(self) -> str:
        """Source and time, as far as they are known."""
        return ", ".join(known for known in (self.source, self.timestamp) if known is not None)

    @property
    def digest(self) -> str:
        """Of both parts."""
        return hashlib.sha256(json.dumps([self.prompt, self.text]).encode()).hexdigest()


@dataclass(frozen=True)
class Columns:
    """Names of columns; empty: there is none. With a prompt, `text` is its completion."""

    text: str
    prompt: str = ""
    id: str = ""
    group: str = ""
    source: str = ""
    timestamp: str = ""

    @property
    def given(self) -> list[str]:
        """Those that there are."""
        return [name for name in vars(self).values() if name]


def read(file: Path, columns: Columns) -> list[Row]:
    """The rows of a Parquet, JSONL, CSV or TSV file.

    Raises:
        BadInput: The file is missing, of another kind or damaged, a row lacks a column, a text is none or empty, or an
            id is neither integer nor text, or of two rows.
    """
    rows = read_rows(file, columns.given)
    texts = texts_of(rows, columns.text)
    prompts = texts_of(rows, columns.prompt) if columns.prompt else [""] * len(rows)
    ids = ids_of(rows, columns.id) if columns.id else [""] * len(rows)
    known = (_names(rows, name) for name in (columns.group, columns.source, columns.timestamp))
    places = (f"{rows.place(index)} of {file}" for index in range(len(rows)))
    found = [Row(*values) for values in zip(places, prompts, texts, ids, *known, strict=True)]
    if columns.id:
        return found
    times: dict[str, int] = {}
    return [_named(row, times) for row in found]


def share(tokens: Sequence[int]) -> float:
    """A number from 0 to 1, by which a text is dealt to a set: the same tokens always to the same one."""
    return set_shares([np.asarray(tokens, dtype=np.int64)])[0]  # two spellings may be one sequence of tokens


def encode(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int, cache: Path) -> list[Encoded]:
    """The tokens of each text and how many of them, from the first, are not learned.

    Args:
        rows: Of one file.
        tokenizer: What it makes of them is kept, unless it takes no time.
        max_length: Most tokens of a text.
        cache: Where.

    Raises:
        BadInput: Texts have more than max_length tokens, or nothing to learn.
    """
    found = _kept(rows, tokenizer, cache) if tokenizer.files else _tokens(rows, tokenizer)
    if longer := [index for index, (tokens, _) in enumerate(found) if len(tokens) > max_length]:
        longest = max(longer, key=lambda index: len(found[index][0]))
        raise BadInput(
            f"{len(longer):,} of {len(found):,} texts have more than max_length = {max_length} tokens (the longest: "
            f"{len(found[longest][0]):,}, {rows[longest].place}): raise max_length, or shorten them"
        )
    if bare := [row.place for row, (tokens, prompt) in zip(rows, found) if len(tokens) <= prompt]:
        raise BadInput(f"{len(bare):,} texts have no token to learn (the first is {bare[0]}): leave them out")
    return found


def kept_tokens(rows: Sequence[Row], tokenizer: Tokenizer, cache: Path) -> Path:
    """The file of a tokenizer's tokens of these texts, whether it is there or not."""
    said = {file.name: sha256_file(file) for file in tokenizer.files}
    return cache / f"tokens-{sha256_json([VERSION, said, [row.digest for row in rows]])[:16]}.parquet"


def _kept(rows: Sequence[Row], tokenizer: Tokenizer, cache: Path) -> list[Encoded]:
    file = kept_tokens(rows, tokenizer, cache)
    if not file.is_file():
        made = _tokens(rows, tokenizer)
        columns = {
            "tokens": pa.array([tokens for tokens, _ in made], pa.list_(pa.int32())),
            "prompt": pa.array([prompt for _, prompt in made], pa.int32()),
        }
        with atomic_path(file) as draft:
            pq.write_table(pa.table(columns), draft, compression="zstd")
    table = pq.read_table(file)
    return list(zip(table["tokens"].to_pylist(), table["prompt"].to_pylist()))


def _tokens(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Encoded]:
    found = []
    for row in rows:
        prompt = tokenizer.tokens(row.prompt, first=True) if row.prompt else []
        text = tokenizer.tokens(row.text, first=not row.prompt)
        ended = text if tokenizer.end is None else [*text, tokenizer.end]
        found.append(([*prompt, *ended], max(1, len(prompt))))  # nothing precedes a first token that foretells it
    return found


def _names(rows: Rows, column: str) -> Sequence[str | None]:
    return names_of(rows, column) if column else [None] * len(rows)


def _named(row: Row, times: dict[str, int]) -> Row:
    """By the hash of its text; the second of the same text is `…-2`, and so on."""
    short = row.digest[:16]
    times[short] = times.get(short, 0) + 1
    return Row(**vars(row) | {"id": short if times[short] == 1 else f"{short}-{times[short]}"})
