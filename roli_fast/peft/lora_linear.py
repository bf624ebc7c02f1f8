"""A linear layer with low-rank updates, and folding them into its weight."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from roli_fast import ops
from roli_fast.engine import MergeRequest
from roli_fast.errors import ArgumentError, describe
from roli_fast.models import Classifier
from roli_fast.peft.modes import Inserted

Rows = tuple[tuple[int, int], ...]


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
        x = input
        if self.merged is not None:
            return linear(x, self.merged, self.bias)
        seed = None
        dropout = self.dropout if self.training else 0.0
        if dropout:  # drawn by torch on the device: checkpointing replays it without a sync
            seed = torch.randint(2**62, (1,), device=x.device)
        return ops.lora_linear(
            x,
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


def merge(model: Classifier) -> Classifier:
    """A copy of `model` with every LoRA update folded into its weight: a plain timm network.

    The sum is made in fp32 and rounded once. `model` itself keeps its weights bit for bit, and the
    copy's state dict has timm's names alone, so `models.save_model` writes a plain file.

    Args:
        model: a classifier with LoRA layers.

    Returns:
        The plain classifier, in the same train or eval mode.

    Raises:
        ArgumentError: it has no LoRA layers, or beside them modules that cannot be folded.
    """
    others = [tree["name"] for tree in model.card.get("tuning", []) if tree["name"] != "lora"]
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}
    if others or not layers:
        got = f"one with {', '.join(others)}, which is not linear" if others else "one without LoRA"
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
    plain.card.pop("tuning")
    return plain
