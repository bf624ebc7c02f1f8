"""Bottleneck adapters after the MLP of every block.

Sources: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019
(arXiv:1902.00751); the one-adapter-a-block form of Pfeiffer et al., "AdapterFusion", EACL 2021
(arXiv:2005.00247), as RoLI uses it.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn.functional import gelu

from roli_fast.errors import ArgumentError, describe
from roli_fast.models.classifier import backbone_of, name_of
from roli_fast.peft.base import METHODS, Inserted, Method, head_names, unfit

NAME = "adapter"
"""The adapter's name inside the MLP that it follows."""


class Bottleneck(nn.Module, Inserted):
    """z + up(gelu(down(z))) over the last axis; up starts at zero, so it starts as the identity.

    Args:
        width: size of the last axis.
        inner: size of the bottleneck.
        generator: draws the initial `down`, uniform in +-1 / sqrt(width).
        like: a weight whose device and dtype the new ones take.
    """

    def __init__(self, width: int, inner: int, generator: torch.Generator, like: Tensor) -> None:
        super().__init__()
        place = {"device": like.device, "dtype": like.dtype}
        self.down = cast(nn.Linear, nn.utils.skip_init(nn.Linear, width, inner, **place))
        self.up = cast(nn.Linear, nn.utils.skip_init(nn.Linear, inner, width, **place))
        bound = 1 / math.sqrt(width)
        with torch.no_grad():
            for tensor in (self.down.weight, self.down.bias):
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.copy_((2 * drawn - 1) * bound)
            self.up.weight.zero_()
            self.up.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:
        return z + self.up(gelu(self.down(z)))


def _after_mlp(mlp: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    """Forward hook: the MLP keeps its class and its names, and its output passes the adapter."""
    return mlp.get_submodule(NAME)(output)


@METHODS.register("adapter")
@dataclass(frozen=True)
class Adapter(Method):
    """A bottleneck after the MLP of every block, inside the residual branch, and the head train.

    h = h + drop_path(adapter(mlp(norm(h)))). Down is random and up zero, so that both train (in the
    RoLI release both are zero and only up's bias ever moves). The backbone is frozen and in eval
    mode, as in RoLI. It fits every network whose blocks have an MLP of linear layers: ViT, Swin,
    ConvNeXt.

    Args:
        reduction: the bottleneck has 1 / `reduction` of the block's width.
    """

    reduction: int = 8

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ArgumentError(describe("reduction", "an integer >= 1", self.reduction))

    def prepare(self, model: nn.Module, generator: torch.Generator) -> list[str]:
        found, head = mlps(model), head_names(model)
        for name, mlp in found.items():
            if hasattr(mlp, NAME):
                got = f"one with {name}.{NAME}"
                raise ArgumentError(describe("tuning", "a model without adapters", got))
            if (width := mlp.fc2.out_features) < self.reduction:
                expected = f"at most {width}, the width of {name}"
                raise ArgumentError(describe("reduction", expected, self.reduction))
        names: list[str] = []
        for name, mlp in found.items():
            width = mlp.fc2.out_features
            adapter = Bottleneck(width, width // self.reduction, generator, mlp.fc2.weight)
            mlp.add_module(NAME, adapter.train(mlp.training))
            mlp.register_forward_hook(_after_mlp)
            names += [f"{name}.{NAME}.{own}" for own, _ in adapter.named_parameters()]
        return [*names, *head]


def mlps(model: nn.Module) -> dict[str, Any]:
    """The MLP of every block, by name: a module `mlp` of linear layers in a block with attention, a
    convolution or a norm (the MLP of an attention pooling or of positions is not one)."""
    found: dict[str, Any] = {}
    others: list[str] = []
    for name, block in model.named_modules():
        parts = dict(block.named_children())
        mixers = ("attn", "conv_dw", "token_mixer", "norm")
        mixes = any(part.startswith(mixers) for part in parts)
        if not mixes or isinstance(block, AttentionPoolLatent):
            continue
        for part, mlp in parts.items():
            last = getattr(mlp, "fc2", None) if part.startswith("mlp") else None
            if part == "mlp" and isinstance(last, nn.Linear):
                found[f"{name}.mlp"] = mlp
            elif last is not None:
                others.append(f"{name}.{part}")
    if not found or others:
        where = f" ({others[0]})" if found else ""
        raise unfit(
            "adapter",
            f"{name_of(model)} (timm's {type(backbone_of(model)).__name__})",
            f"whose blocks have no `mlp` of linear layers{where}",
            "Adapters fit ViT, Swin and ConvNeXt (built without conv_mlp); use bias or full.",
        )
    return found
