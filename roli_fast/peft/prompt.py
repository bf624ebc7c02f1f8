"""Visual prompt tuning (VPT): learned tokens beside the patches.

Source: Jia et al., "Visual Prompt Tuning", ECCV 2022 (arXiv:2203.12119).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from roli_fast.errors import ArgumentError, describe
from roli_fast.models import Classifier
from roli_fast.peft.base import METHODS, head_names
from roli_fast.peft.modes import Modes
from roli_fast.peft.prompt_tokens import NAME, Tokens
from roli_fast.peft.swin_prompt import prompt_swin


@METHODS.register("prompt")
@dataclass(frozen=True)
class Prompt(Modes):
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

    def prepare(self, model: Classifier, generator: torch.Generator) -> list[str]:
        """Insert the prompts; their names and the head's."""
        backbone = model.backbone
        present = [n for n, module in model.named_modules() if isinstance(module, Tokens)]
        if present:
            raise ArgumentError(
                describe("tuning", "a model without prompts", f"one with {present[0]}")
            )
        blocks = self._blocks(model)
        for number, block in enumerate(blocks):
            if number == 0 or self.deep:
                block.add_module(NAME, self._tokens(backbone, block, generator))
        if isinstance(backbone, SwinTransformer):
            prompt_swin(backbone, tokens=self.tokens, deep=self.deep, pooled=self.pooled)
        else:
            self._join_vit(backbone, blocks)
        inside = {id(block.get_submodule(NAME)) for block in blocks if hasattr(block, NAME)}
        names = [f"{name}.tokens" for name, m in model.named_modules() if id(m) in inside]
        return [*names, *head_names(model)]

    def _blocks(self, model: Classifier) -> list[nn.Module]:
        backbone = model.backbone
        if isinstance(backbone, VisionTransformer):
            return list(backbone.blocks.children())
        if isinstance(backbone, SwinTransformer):
            stages = backbone.layers.children()
            return [block for stage in stages for block in stage.get_submodule("blocks").children()]
        raise ArgumentError(
            describe(
                "tuning",
                "a method that fits the model",
                f"prompt for {model.config.name} (timm's {type(backbone).__name__})",
                "Prompts join the tokens of timm's VisionTransformer or SwinTransformer (not of "
                "Swin V2): choose such a network, or use linear, bias or full, and adapter or lora "
                "where blocks have linear layers.",
            )
        )

    def _tokens(self, backbone: nn.Module, block: nn.Module, generator: torch.Generator) -> Tokens:
        projection = backbone.get_parameter("patch_embed.proj.weight")
        width, channels, height, breadth = projection.shape
        bound = math.sqrt(6 / (channels * height * breadth + width))
        like = next(block.parameters())
        own = getattr(block, "dim", width)  # a Swin block's own width
        drawn = torch.rand(1, self.tokens, own, generator=generator)
        start = ((2 * drawn - 1) * bound).to(like)
        return Tokens(start, self.dropout).train(block.training)

    def _join_vit(self, backbone: nn.Module, blocks: list[nn.Module]) -> None:
        """Hooks around the blocks: the first takes the prompts in, deep ones are exchanged before
        every other, and the last lets them go unless they are pooled."""
        prefix = int(backbone.num_prefix_tokens)  # type: ignore[arg-type]
        for number, block in enumerate(blocks):
            if hasattr(block, NAME):
                block.register_forward_pre_hook(_Enter(prefix, 0 if number == 0 else self.tokens))
        if not self.pooled:
            blocks[-1].register_forward_hook(_Leave(prefix, self.tokens))


@dataclass(frozen=True)
class _Enter:
    """Forward pre-hook: the block's own prompts after `prefix` tokens, in place of `old` ones."""

    prefix: int
    old: int

    def __call__(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        prompts = block.get_submodule(NAME)(len(x))
        head, tail = x[:, : self.prefix], x[:, self.prefix + self.old :]
        return torch.cat((head, prompts.to(x.dtype), tail), dim=1), *rest


@dataclass(frozen=True)
class _Leave:
    """Forward hook: drop the `tokens` prompts after `prefix` tokens."""

    prefix: int
    tokens: int

    def __call__(self, _block: nn.Module, _inputs: object, x: Tensor) -> Tensor:
        return torch.cat((x[:, : self.prefix], x[:, self.prefix + self.tokens :]), dim=1)
