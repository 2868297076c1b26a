"""Models of many kinds that classify texts, with the words of `texts` and random weights."""

from pathlib import Path
from typing import Any

import torch

from tests.flows.texts import POSITIONS, VOCABULARY

ENTERED = ("Bert", "DistilBert", "Electra", "Roberta")
"""Those of which `train_layers` may be trained alone."""
DECODERS = ("GPT2", "Llama")
"""The same with a mean; their own heads look for the last token, and are told none."""
WHOLE = ("Albert", "Bart", "DebertaV2", "GPT2", "Llama", "MPNet", "ModernBert", "T5")

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
BOTH = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
OWN: dict[str, dict[str, Any]] = {
    "Albert": SIZES | {"embedding_size": 8},
    "Bart": BOTH | {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 3},
    "DebertaV2": SIZES | {"relative_attention": True, "pos_att_type": "c2p|p2c"},
    "DistilBert": {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 2},
    "Electra": SIZES | {"embedding_size": 16},  # others are refused
    "GPT2": {"n_embd": 16, "n_head": 2, "n_layer": 2},
    "T5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
}
TOKENS = {f"{name}_token_id": place for name, place in [("pad", 0), ("bos", 2), ("cls", 2), ("eos", 3), ("sep", 3)]}


def save_classifier(folder: Path, kind: str, positions: int = POSITIONS, labels: int = 2) -> Path:
    """Write a model with a head for so many labels, as save_pretrained does, and its tokenizer."""
    import transformers

    places = "n_positions" if kind == "GPT2" else "max_position_embeddings"
    sizes = {"vocab_size": len(VOCABULARY), places: positions, "num_labels": labels, **TOKENS} | OWN.get(kind, SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**sizes)
        getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    _save_tokenizer(folder)
    return folder


def _save_tokenizer(folder: Path) -> None:
    """The same of any kind; it does not say how long a text may be."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", TOKENS["cls_token_id"]), ("[SEP]", TOKENS["sep_token_id"])]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
