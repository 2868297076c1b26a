"""Memory that a text of 512 tokens takes while it is scored: `python -m tests.benchmarks.text_memory`.

A GPT-2 of width 256 with random weights and one sampled label at every token, on the blocks that a language model has
unless it names others. What counts is what the process, a fresh one for each model, grows by between one text and eight
that are read together. Beside it stands what is known to be held: the factors, the attention and the logits.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from influence import Blocks, Fisher, Reader, Task, body, select
from tests.benchmarks.peak import status

LENGTH, WIDTH, TEXTS = 512, 256, 8
MODELS = ((1, 4, 8192), (1, 16, 8192), (4, 4, 8192), (4, 16, 8192), (1, 4, 257), (4, 4, 257))
"""Layers, heads and words."""


def measure(layers: int, heads: int, words: int) -> str:
    """A row of the table."""
    import transformers

    sizes = {"n_layer": layers, "n_head": heads, "n_embd": WIDTH, "n_positions": LENGTH, "vocab_size": words}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tokens = torch.randint(words, (TEXTS, LENGTH))
    blocks: Blocks = select(model, body)
    task: Task[Tensor] = Task(lambda model, batch: model(input_ids=batch, use_cache=False).logits, lambda batch: batch)
    with Reader(model, task, blocks, Fisher("sampled")) as reader:
        reader.train(tokens[:1], 0, torch.arange(1))
        before = status("VmHWM")
        reader.train(tokens, 1, torch.arange(TEXTS))
        grown = (status("VmHWM") - before) / 1024 / (TEXTS - 1)
    factors = LENGTH * sum(inner + 2 * outer for outer, inner in (block.weight_shape for block in blocks))
    known = [4 * count / 2**20 for count in (factors, layers * heads * LENGTH**2, LENGTH * words)]
    estimated = 3 * known[0] + known[1] + 6 * known[2]
    cells = (layers, heads, words, *(f"{size:.0f}" for size in (*known, estimated, grown)))
    return f"| {' | '.join(map(str, cells))} |"


def table() -> str:
    """Of all models, each measured in a process of its own."""
    lines = [
        "| layers | heads | words | factors, MB | attention, MB | logits, MB | 3 F + A + 6 L | measured |",
        "|---" * 8 + "|",
    ]
    for model in MODELS:
        row = [sys.executable, "-m", "tests.benchmarks.text_memory", *map(str, model)]
        lines.append(subprocess.run(row, check=True, capture_output=True, text=True).stdout.strip())
    return "\n".join(lines)


def main() -> None:
    """Print the row of the command line, or the table."""
    torch.set_num_threads(1)
    given = [int(one) for one in sys.argv[1:]]
    print(measure(*given) if given else table())


if __name__ == "__main__":
    main()
