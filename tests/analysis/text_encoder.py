"""A small text encoder, as the LP-FT paper's models are: tokens, attention, first token, head."""

import torch
from torch import Tensor, nn

from roli_fast.data import Batch

VOCABULARY = 11


class TextEncoder(nn.Module):
    """Tokens int64 (B, L) -> logits (B, C) of the first token after two layers and a norm.

    `attention` is written out, so that forward-mode derivatives pass.
    """

    def __init__(self, classes: int = 3, width: int = 8, length: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.embed = nn.Embedding(VOCABULARY, width)
            self.place = nn.Parameter(0.1 * torch.randn(length, width))
            self.layers = nn.ModuleList(Layer(width) for _ in range(2))
            self.norm = nn.LayerNorm(width)
            self.drop = nn.Dropout(0.3)
            self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place[: x.shape[1]]
        for layer in self.layers:
            h = layer(h)
        return self.head(self.drop(self.norm(h)[:, 0]))


class Layer(nn.Module):
    """One head of attention and a GELU layer, pre-norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(h)).chunk(3, dim=-1)
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        h = h + self.proj(weights @ v)
        return h + self.down(nn.functional.gelu(self.up(self.norm2(h))))


def token_batches(count: int = 7, length: int = 6, classes: int = 3, size: int = 4) -> list[Batch]:
    """`count` random sentences in batches of `size`."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(VOCABULARY, (count, length), generator=generator)
    y, ids = torch.arange(count) % classes, torch.arange(count) + 50
    parts = zip(x.split(size), y.split(size), ids.split(size), strict=True)
    return [Batch(*part) for part in parts]
