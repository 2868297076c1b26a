"""A BERT of two dozen words and random weights, and files of texts that say their own label."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from flows.workload import Home
from flows.workloads.text.classification import TextClassification

GOOD, BAD = ("fine", "great", "warm", "bright"), ("dull", "poor", "cold", "grey")
PLAIN = ("the", "film", "is", "a", "story", "of", "two", "men", "who", "walk")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN)
LENGTH, POSITIONS = 16, 24  # most tokens of a text, and of what the model takes


def save_bert(folder: Path, layers: int = 3) -> Path:
    """Write a model and its tokenizer, as save_pretrained does."""
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": layers}
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=POSITIONS, initializer_range=0.5, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences of 1 to 12 words, of which the label is the tone of one; no two are alike."""
    generator = torch.Generator().manual_seed(seed)

    def draw(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    found: dict[str, str] = {}
    while len(found) < count:
        words = [PLAIN[draw(len(PLAIN))] for _ in range(draw(12))]
        label = ("negative", "positive")[draw(2)]
        tone = GOOD if label == "positive" else BAD
        words.insert(draw(len(words) + 1), tone[draw(len(tone))])
        found[" ".join(words)] = label
    return [{"id": row, "text": text, "label": label} for row, (text, label) in enumerate(found.items())]


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """As Parquet, JSONL, CSV or TSV, by the name's ending."""
    names = list(rows[0])
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = {".csv": ",", ".tsv": "\t"}[file.suffix]
        lines = [names, *([str(row[name]) for name in names] for row in rows)]
        file.write_text("".join(separator.join(line) + "\n" for line in lines))
    return file


def texts_of(folder: Path, model: Path, rows: Sequence[Mapping[str, Any]], **options: Any) -> TextClassification:
    """A workload of such rows, with their ids."""
    write_rows(folder / "texts.parquet", rows)
    given = {"id": "id", "max_length": LENGTH, "head": "mean"} | options
    return TextClassification(Home(folder, folder / "cache"), "texts.parquet", str(model), **given)
