"""BitFit: the biases and the head train.

Source: Ben Zaken, Ravfogel, Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models", ACL 2022 (arXiv:2106.10199).
"""

from dataclasses import dataclass

import torch
from torch import nn

from roli_fast.models.classifier import name_of
from roli_fast.peft.base import METHODS, Method, head_names, unfit

BIASES = frozenset(("bias", "q_bias", "k_bias", "v_bias", "qkv_bias", "mlp_bias", "in_proj_bias"))
"""Own names of bias parameters in torch and timm."""

TABLES = frozenset(("relative_position_bias_table",))
"""Own names of tables that add to attention logits: a position table, not a bias of a layer."""


@METHODS.register("bias")
@dataclass(frozen=True)
class Bias(Method):
    """Every bias and the head train: those of linear layers, convolutions, LayerNorm and BN.

    Everything else is frozen and the backbone stays in eval mode, as in RoLI. Swin's relative
    position tables are not biases and stay frozen; the RoLI release trained them because their
    name contains "bias" (63,544 entries beside Swin-B's 137,216 biases).

    Args:
        tables: train the relative position tables too.
    """

    tables: bool = False

    def prepare(self, model: nn.Module, generator: torch.Generator) -> list[str]:
        kinds = BIASES | TABLES if self.tables else BIASES
        head = head_names(model)
        names = [n for n, _ in model.named_parameters() if n.rpartition(".")[2] in kinds]
        backbone = [name for name in names if name not in head]
        if not backbone:
            reason = "whose backbone has no biases"
            raise unfit("bias", name_of(model), reason, "Use linear, lora or full.")
        return [*backbone, *head]
