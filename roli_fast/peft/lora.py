"""LoRA: low-rank updates of linear layers, and folding them into the weights.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022
(arXiv:2106.09685).
"""

import copy
import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from roli_fast import ops
from roli_fast.engine import MergeRequest
from roli_fast.errors import ArgumentError, describe
from roli_fast.models.classifier import Classifier
from roli_fast.peft.base import METHODS, Inserted, Method, head_names
from roli_fast.peft.targets import Rows, check_called, find_layers

Network = TypeVar("Network", bound=nn.Module)


@METHODS.register("lora")
@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank updates of linear layers, and the head, train; everything else is frozen.

    y += alpha / rank * B A dropout(x), with A random and B zero, so that both train and the
    function at first is unchanged (in the RoLI release both are zero and never move). The backbone
    is in eval mode, as in RoLI; LoRA's own dropout is active in updates, where the release's never
    was, and off in the attack.

    Args:
        rank: columns of B, rows of A.
        alpha: the update is multiplied by alpha / rank.
        dropout: dropout of the update's input.
        targets: which layers: "q", "k", "v" (their rows of timm's fused qkv, or the layers that
            make them, in every attention), or the name of linear layers or its end, "qkv",
            "mlp.fc1", "backbone.blocks.0.attn.proj" say.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q", "v")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ArgumentError(describe("rank", "an integer >= 1", self.rank))
        if not self.alpha > 0:
            raise ArgumentError(describe("alpha", "a number > 0", self.alpha))
        if not 0 <= self.dropout < 1:
            raise ArgumentError(describe("dropout", "a number in [0, 1)", self.dropout))
        if not self.targets or len(set(self.targets)) < len(self.targets):
            expected = "one or more different names of layers"
            raise ArgumentError(describe("targets", expected, self.targets))

    def find(self, model: nn.Module) -> dict[str, Rows | None]:
        """Layer name -> output rows (None for all) that it would take, with every check made.

        Raises:
            ArgumentError: it cannot be applied to this model, with the reason.
        """
        found = find_layers(model, self.targets)
        for name, rows in found.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear), "find_layers finds nothing else"
            if isinstance(layer, Inserted):
                got, fix = f"{name}, which has it already", "peft.merge folds it into the weight."
                raise ArgumentError(describe("tuning", "layers without LoRA", got, fix))
            heights = [stop - start for start, stop in rows or ((0, layer.out_features),)]
            width = min(layer.in_features, *heights)
            if self.rank > width:
                expected = f"at most {width}, the width of {name}"
                raise ArgumentError(describe("rank", expected, self.rank))
        check_called(model, found)
        return found

    def prepare(self, model: nn.Module, generator: torch.Generator) -> list[str]:
        names: list[str] = []
        head = head_names(model)
        for name, rows in self.find(model).items():
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear), "find_layers finds nothing else"
            layer = LoraLinear(
                base,
                rows=rows,
                rank=self.rank,
                scale=self.alpha / self.rank,
                dropout=self.dropout,
                generator=generator,
            )
            model.set_submodule(name, layer.train(base.training))
            names += [f"{name}.lora_a", f"{name}.lora_b"]
        return [*names, *head]


class LoraLinear(nn.Linear, Inserted):
    """y = x W^T + bias with scale * B_i A_i added to ranges of the output rows (`ops.lora_linear`).

    It takes the place of a plain linear layer and shares its parameters, under their names. A is
    drawn as a linear layer's weight is (uniform in +-1 / sqrt(in)), B is zero.

    Args:
        base: the layer to replace.
        rows: disjoint ranges (start, stop) of its output rows; None is all of them.
        rank: columns of each B_i, rows of each A_i.
        scale: factor of the update, alpha / rank.
        dropout: dropout of the update's input, in updates.
        generator: draws A.
    """

    def __init__(  # noqa: PLR0913 - the layer's own quantities
        self,
        base: nn.Linear,
        *,
        rows: Rows | None,
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would draw a weight only to drop it
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.rows, self.scale, self.dropout = rows, scale, dropout
        self.merged: Tensor | None = None
        slices = rows or ((0, base.out_features),)
        drawn = torch.rand(len(slices) * rank, base.in_features, generator=generator)
        start = ((2 * drawn - 1) / math.sqrt(base.in_features)).to(base.weight)
        self.lora_a = nn.Parameter(start)
        covered = sum(stop - first for first, stop in slices)
        self.lora_b = nn.Parameter(base.weight.new_zeros(covered, rank))

    def extra_repr(self) -> str:
        """Rank and rows beside what nn.Linear shows."""
        rows = "all" if self.rows is None else self.rows
        return f"{super().extra_repr()}, rank={self.lora_b.shape[1]}, rows={rows}"

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out); with `merged` set, one plain linear layer."""
        if self.merged is not None:
            return linear(input, self.merged, self.bias)
        seed = None
        dropout = self.dropout if self.training else 0.0
        if dropout:  # drawn by torch on the device: checkpointing replays it without a sync
            seed = torch.randint(2**62, (1,), device=input.device)
        return ops.lora_linear(
            input,
            self.weight,
            self.bias,
            self.lora_a,
            self.lora_b,
            scale=self.scale,
            dropout=dropout,
            seed=seed,
            rows=self.rows,
        )

    def merge_request(self) -> MergeRequest:
        """What the engine folds into a buffer once an attack: it stands in `merged` meanwhile."""
        return MergeRequest(self.weight, self.lora_a, self.lora_b, self.scale, self.rows)


def merge(model: Network) -> Network:
    """A copy of `model` with every LoRA update folded into its weight, without a trace of LoRA.

    The sum is made in fp32 and rounded once. `model` itself keeps its weights bit for bit, and the
    copy's state dict has timm's names alone, so `models.save_model` writes a plain file.

    Args:
        model: a classifier or a plain timm network with LoRA layers.

    Returns:
        The same kind of network, in the same train or eval mode.

    Raises:
        ArgumentError: it has no LoRA layers, or beside them modules that cannot be folded.
    """
    inserted = {n: m for n, m in model.named_modules() if isinstance(m, Inserted)}
    layers = {n: m for n, m in inserted.items() if isinstance(m, LoraLinear)}
    others = [name for name in inserted if name not in layers]
    if others or not layers:
        got = f"one with {others[0]}, which is not linear" if others else "one without LoRA"
        raise ArgumentError(describe("model", "a model with LoRA and nothing else", got))
    plain = copy.deepcopy(model)
    requests = [layer.merge_request() for layer in layers.values()]
    weights, a, b, scales, rows = (list(column) for column in zip(*requests, strict=True))
    buffers = [torch.empty_like(weight, requires_grad=False) for weight in weights]
    ops.lora_merge_(buffers, weights, a, b, scales=scales, rows=rows)
    for (name, layer), buffer in zip(layers.items(), buffers, strict=True):
        folded = nn.utils.skip_init(
            nn.Linear, layer.in_features, layer.out_features, bias=layer.bias is not None
        )
        folded.weight = nn.Parameter(buffer, requires_grad=layer.weight.requires_grad)
        folded.bias = plain.get_submodule(name).bias
        plain.set_submodule(name, folded.train(layer.training))
    if isinstance(plain, Classifier):
        plain.card.pop("tuning")
    return plain
