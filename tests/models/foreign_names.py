"""Other publishers' names, written down from their networks and not from the package's tables."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Pairs = list[tuple[str, str]]
"""(their name, timm's name)."""


def scrambled(network: Any, spread: float = 0.05) -> Any:
    """The network in eval mode, with none of its parameters at its initial 0 or 1."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=draw))
    return network.eval()


def _both(*pairs: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for theirs, ours in pairs:
        for kind in ("weight", "bias"):
            yield f"{theirs}.{kind}", f"{ours}.{kind}"


def microsoft_swin(depths: Sequence[int]) -> Pairs:
    """Microsoft's swin_transformer.py: a BasicLayer holds blocks, then its own downsample."""
    pairs = list(_both(("patch_embed.proj", "patch_embed.proj")))
    pairs += _both(("patch_embed.norm", "patch_embed.norm"), ("norm", "norm"))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}."
            for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
                pairs += _both((at + part, at + part))
            table = f"{at}attn.relative_position_bias_table"
            pairs.append((table, table))
        if stage + 1 < len(depths):
            here, there = f"layers.{stage}.downsample", f"layers.{stage + 1}.downsample"
            pairs.append((f"{here}.reduction.weight", f"{there}.reduction.weight"))
            pairs += _both((f"{here}.norm", f"{there}.norm"))
    return [*pairs, ("head.weight", "head.fc.weight"), ("head.bias", "head.fc.bias")]


def microsoft_buffers(depths: Sequence[int], window: int, windows: int) -> dict[str, Tensor]:
    """What Microsoft's and timm's older Swin files store beside the parameters."""
    area = window * window
    return {
        f"layers.{stage}.blocks.{block}.{name}": tensor
        for stage, depth in enumerate(depths)
        for block in range(depth)
        for name, tensor in (
            ("attn.relative_position_index", torch.zeros(area, area, dtype=torch.int64)),
            ("attn_mask", torch.zeros(windows, area, area)),
        )
        if block % 2 or name != "attn_mask"
    }


def torchvision_vit(depth: int, *, published: bool) -> Pairs:
    """torchvision's VisionTransformer; `published` as in the file of 2021, before MLP was one."""
    first, second = ("linear_1", "linear_2") if published else ("0", "3")
    pairs = [("class_token", "cls_token"), ("encoder.pos_embedding", "pos_embed")]
    pairs += _both(("conv_proj", "patch_embed.proj"), ("encoder.ln", "norm"))
    for index in range(depth):
        theirs, ours = f"encoder.layers.encoder_layer_{index}", f"blocks.{index}"
        for kind in ("weight", "bias"):
            pairs.append((f"{theirs}.self_attention.in_proj_{kind}", f"{ours}.attn.qkv.{kind}"))
        pairs += _both(
            (f"{theirs}.ln_1", f"{ours}.norm1"),
            (f"{theirs}.self_attention.out_proj", f"{ours}.attn.proj"),
            (f"{theirs}.ln_2", f"{ours}.norm2"),
            (f"{theirs}.mlp.{first}", f"{ours}.mlp.fc1"),
            (f"{theirs}.mlp.{second}", f"{ours}.mlp.fc2"),
        )
    return [*pairs, *_both(("heads.head", "head"))]
