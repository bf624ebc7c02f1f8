"""Prompts in timm's Swin: through windows, blocks and patch merging.

The modules of a Swin keep their names, weights and buffers; blocks, their attention and (for
shallow prompts) patch merging get a class that carries prompts beside the map: a pair (x, p) of the
map (B, H, W, C) and the prompts (B, T, C).
"""

from typing import Any, Literal

import torch
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import Tensor
from torch.nn.functional import pad

from roli_fast.peft.prompt_tokens import NAME

Pair = tuple[Tensor, Tensor]
Way = Literal["pair", "map", "pool"]


def prompt_swin(backbone: SwinTransformer, *, tokens: int, deep: bool, pooled: bool) -> None:
    """Let the prompts that stand in the blocks (`NAME`) take part, in place.

    Args:
        backbone: the Swin; its first block has prompts, with `deep` all blocks have.
        tokens: prompts a block.
        deep: nothing but maps passes from stage to stage.
        pooled: the last block returns map and prompts as one row of tokens.
    """
    last: Any = None
    for number, stage in enumerate(backbone.layers.children()):
        blocks: list[Any] = list(stage.get_submodule("blocks").children())
        for block in blocks:
            block.__class__ = PromptedBlock
            block.attn.__class__ = PromptedAttention
            block.attn.extra = tokens
            block.way = "pair"
        if deep:
            blocks[-1].way = "map"
        elif number > 0:
            stage.get_submodule("downsample").__class__ = PromptedMerging
        last = blocks[-1]
    last.way = "pool" if pooled else "map"


class PromptedAttention(WindowAttention):
    """Window attention whose windows begin with `extra` prompts; they have no position."""

    extra: int

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (windows, T + area, C), mask (windows of an image, area, area) -> like x."""
        if mask is not None:
            mask = pad(mask, (self.extra, 0, self.extra, 0))
        return super().forward(x, mask)

    def _get_rel_pos_bias(self) -> Tensor:
        return pad(super()._get_rel_pos_bias(), (self.extra, 0, self.extra, 0))


class PromptedBlock(SwinTransformerBlock):
    """A Swin block for a map with prompts; `way` says what it hands on."""

    way: Way

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:  # type: ignore[override]
        """A map, or a pair where the prompts come from the block before."""
        if hasattr(self, NAME):
            map_ = x[0] if isinstance(x, tuple) else x
            prompts = self.get_submodule(NAME)(len(map_)).to(map_.dtype)
        else:
            assert isinstance(x, tuple), "the first block has its own"
            map_, prompts = x
        shape, count = map_.shape, prompts.shape[1]
        tokens = torch.cat((prompts, map_.flatten(1, 2)), dim=1)
        mixed = self._windows(self.norm1(tokens), count, shape)
        tokens = tokens + self.drop_path1(mixed)
        tokens = tokens + self.drop_path2(self.mlp(self.norm2(tokens)))
        if self.way == "pool":  # one row of tokens: the head averages over both axes
            return tokens.unsqueeze(1)
        map_ = tokens[:, count:].reshape(shape)
        return map_ if self.way == "map" else (map_, tokens[:, :count])

    def _windows(self, tokens: Tensor, count: int, shape: torch.Size) -> Tensor:
        """Attention in windows, each with a copy of its image's prompts, which are averaged after.

        Tokens (B, T + H * W, C) -> the same shape.
        """
        batch, height, width, channels = shape
        (rows, columns), (down, right) = self.window_size, self.shift_size
        prompts, x = tokens[:, :count], tokens[:, count:].reshape(shape)
        x = torch.roll(x, (-down, -right), (1, 2))
        x = pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        padded = x.shape[1:3]
        mask = self.get_attn_mask(x) if getattr(self, "dynamic_mask", False) else self.attn_mask
        windows = window_partition(x, self.window_size).flatten(1, 2)
        copies = prompts.repeat_interleave(len(windows) // batch, dim=0)
        out = self.attn(torch.cat((copies, windows), dim=1), mask=mask)
        prompts = out[:, :count].reshape(batch, -1, count, channels).mean(1)
        windows = out[:, count:].reshape(-1, rows, columns, channels)
        x = window_reverse(windows, self.window_size, *padded)[:, :height, :width]
        x = torch.roll(x, (down, right), (1, 2))
        return torch.cat((prompts, x.flatten(1, 2)), dim=1)


class PromptedMerging(PatchMerging):
    """Patch merging that takes a prompt for four equal neighbours."""

    def forward(self, x: Pair) -> Pair:  # type: ignore[override]
        """A pair -> a pair of half the resolution and the next width."""
        map_, prompts = x
        return super().forward(map_), self.reduction(self.norm(prompts.repeat(1, 1, 4)))
