"""Visual prompt tuning (VPT): learned tokens beside the patches, in timm's ViT and Swin.

Source: Jia et al., "Visual Prompt Tuning", ECCV 2022 (arXiv:2203.12119).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import pad

from roli_fast.errors import ArgumentError, describe
from roli_fast.models.classifier import backbone_of, name_of
from roli_fast.peft.base import METHODS, Inserted, Method, head_names, unfit

NAME = "prompt"
"""The name of the prompts inside their block."""


class Tokens(nn.Module, Inserted):
    """Learned tokens (1, T, D) -> (B, T, D), with dropout in updates.

    Args:
        start: initial values (1, T, D).
        dropout: share of entries that an update sets to zero.
    """

    def __init__(self, start: Tensor, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(start)
        self.dropout = dropout

    def no_weight_decay(self) -> set[str]:
        """Like class tokens and position tables, prompts do not decay."""
        return {"tokens"}

    def forward(self, batch: int) -> Tensor:
        tokens = self.tokens.expand(batch, -1, -1)
        return nn.functional.dropout(tokens, self.dropout, self.training)


@METHODS.register("prompt")
@dataclass(frozen=True)
class Prompt(Method):
    """Learned tokens join the patches, and they and the head train; ViT and Swin.

    The backbone is frozen and in eval mode, as in VPT and RoLI. The tokens start uniform in +-v
    with v = sqrt(6 / (3 * patch ** 2 + width)), so the function changes at once: a head probed
    without them does not fit any more, and the paper has no RoLI with prompts.

    In a ViT they stand between the class token and the patches. In a Swin every window gets a copy
    and the copies are averaged afterwards; their relative position bias is zero. Shallow prompts go
    through patch merging as four copies of themselves.

    Args:
        tokens: prompts a block.
        deep: every block gets its own prompts in place of those that left the block before; else
            those of the first block go through the network.
        dropout: dropout of the prompts in updates.
        pooled: where the head averages tokens, the prompts are among them, as in VPT's Swin.
    """

    keeps_function: ClassVar[bool] = False

    tokens: int = 10
    deep: bool = True
    dropout: float = 0.1
    pooled: bool = False

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ArgumentError(describe("tokens", "an integer >= 1", self.tokens))
        if not 0 <= self.dropout < 1:
            raise ArgumentError(describe("dropout", "a number in [0, 1)", self.dropout))

    def prepare(self, model: nn.Module, generator: torch.Generator) -> list[str]:
        present = [n for n, module in model.named_modules() if isinstance(module, Tokens)]
        if present:
            got = f"one with {present[0]}"
            raise ArgumentError(describe("tuning", "a model without prompts", got))
        backbone, head = backbone_of(model), head_names(model)
        blocks = _blocks(model)
        for block in blocks if self.deep else blocks[:1]:
            block.add_module(NAME, self._tokens(backbone, block, generator))
        if isinstance(backbone, SwinTransformer):
            _join_swin(backbone, tokens=self.tokens, deep=self.deep, pooled=self.pooled)
        else:
            prefix = int(backbone.num_prefix_tokens)  # type: ignore[arg-type]
            for number, block in enumerate(blocks if self.deep else blocks[:1]):
                old = self.tokens if number else 0
                block.register_forward_pre_hook(partial(_enter, prefix=prefix, old=old))
            if not self.pooled:
                blocks[-1].register_forward_hook(partial(_leave, prefix=prefix, count=self.tokens))
        names = [n for n, module in model.named_modules() if isinstance(module, Tokens)]
        return [*(f"{name}.tokens" for name in names), *head]

    def _tokens(self, backbone: nn.Module, block: nn.Module, generator: torch.Generator) -> Tokens:
        projection = backbone.get_parameter("patch_embed.proj.weight")
        width, channels, height, breadth = projection.shape
        bound = math.sqrt(6 / (channels * height * breadth + width))
        like = next(block.parameters())
        own = getattr(block, "dim", width)  # a Swin block's own width
        drawn = torch.rand(1, self.tokens, own, generator=generator)
        start = ((2 * drawn - 1) * bound).to(like)
        return Tokens(start, self.dropout).train(block.training)


def _blocks(model: nn.Module) -> list[nn.Module]:
    backbone = backbone_of(model)
    if isinstance(backbone, VisionTransformer):
        return list(backbone.blocks.children())
    if isinstance(backbone, SwinTransformer):
        stages = backbone.layers.children()
        return [block for stage in stages for block in stage.get_submodule("blocks").children()]
    raise unfit(
        "prompt",
        name_of(model),
        f"which is timm's {type(backbone).__name__}",
        "Prompts join the tokens of timm's VisionTransformer or SwinTransformer (not of Swin V2): "
        "choose such a network, or use linear, bias or full, and adapter or lora where blocks have "
        "linear layers.",
    )


def _enter(
    block: nn.Module, inputs: tuple[Tensor, ...], *, prefix: int, old: int
) -> tuple[Tensor, ...]:
    """Forward pre-hook: a ViT block's own prompts after `prefix` tokens, in place of `old` ones."""
    x, *rest = inputs
    prompts = block.get_submodule(NAME)(len(x))
    return torch.cat((x[:, :prefix], prompts.to(x.dtype), x[:, prefix + old :]), dim=1), *rest


def _leave(_block: nn.Module, _inputs: object, x: Tensor, *, prefix: int, count: int) -> Tensor:
    """Forward hook: drop the `count` prompts after `prefix` tokens."""
    return torch.cat((x[:, :prefix], x[:, prefix + count :]), dim=1)


# Swin: its modules keep their names, weights and buffers; blocks, their attention and (for shallow
# prompts) patch merging get a class that carries prompts beside the map: a pair (x, p) of the map
# (B, H, W, C) and the prompts (B, T, C).

Pair = tuple[Tensor, Tensor]
Way = Literal["pair", "map", "pool"]


def _join_swin(backbone: SwinTransformer, *, tokens: int, deep: bool, pooled: bool) -> None:
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
