"""LoRA: low-rank updates of linear layers.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022
(arXiv:2106.09685).
"""

from dataclasses import dataclass

import torch
from torch import nn

from roli_fast.errors import ArgumentError, describe
from roli_fast.models import Classifier
from roli_fast.peft.base import METHODS, head_names
from roli_fast.peft.lora_linear import LoraLinear, Rows
from roli_fast.peft.modes import Modes
from roli_fast.peft.targets import check_called, find_layers


@METHODS.register("lora")
@dataclass(frozen=True)
class LoRA(Modes):
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
            raise ArgumentError(
                describe("targets", "one or more different names of layers", self.targets)
            )

    def find(self, model: Classifier) -> dict[str, Rows | None]:
        """Layer name -> output rows (None for all) that it would take, with every check made.

        Raises:
            ArgumentError: it cannot be applied to this model, with the reason.
        """
        found = find_layers(model, self.targets)
        for name, rows in found.items():
            self._check(name, model.get_submodule(name), rows or ())
        check_called(model, found)
        return found

    def prepare(self, model: Classifier, generator: torch.Generator) -> list[str]:
        """Replace the layers; names of A and B and of the head's parameters."""
        names: list[str] = []
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
        return [*names, *head_names(model)]

    def _check(self, name: str, layer: nn.Module, rows: tuple[tuple[int, int], ...]) -> None:
        assert isinstance(layer, nn.Linear), "find_layers finds nothing else"
        if isinstance(layer, LoraLinear):
            raise ArgumentError(
                describe(
                    "tuning",
                    "layers without LoRA",
                    f"{name}, which has it already",
                    "peft.merge folds it into the weight.",
                )
            )
        heights = [stop - start for start, stop in rows] or [layer.out_features]
        width = min(layer.in_features, *heights)
        if self.rank > width:
            raise ArgumentError(
                describe("rank", f"at most {width}, the width of {name}", self.rank)
            )
