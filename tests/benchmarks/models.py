"""The models that are measured; plain torch, so that every engine sees the same ones."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them; images [B, 1, 28, 28] are flattened."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Sequential:
    """28 x 28 images: 32 and 64 channels of 3 x 3 with pooling, dense 128, 10 classes."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    """Pre-norm encoder over tokens [B, length], mean-pooled into a softmax head."""

    def __init__(self, tokens: int, length: int, classes: int, layers: int = 4, width: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.02 * Tensor(length, width).normal_())
        self.encoder = nn.Sequential(*(EncoderLayer(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, classes]."""
        x = self.encoder(self.embedding(tokens) + self.position)  # [B, T, width]
        return self.head(self.norm(x).mean(1))


class EncoderLayer(nn.Module):
    """Attention of 4 heads and an MLP of 4 x the width."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> the same."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))  # [B, T, 3, heads, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, T, d] each
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, T, width]
        x = x + self.out(attended)
        return x + self.down(gelu(self.up(self.mlp_norm(x))))
