"""LNLoRA: LoRA behind a layer norm of its own (FullLoRA, Yuan et al., IEEE TIP 2025,
arXiv:2401.01752)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from roli_fast.peft.base import METHODS, Inserted, head_names
from roli_fast.peft.lora import LoRA, LoraLinear
from roli_fast.peft.targets import Rows


@METHODS.register("lnlora")
@dataclass(frozen=True)
class LNLoRA(LoRA):
    """y += alpha / rank * B A LN(x) in all linear layers of the attention and the MLP; A, B, the
    norm and the head train, everything else is frozen.

    The norm depends on the input, so the update cannot be merged: an attack's passes pay for it,
    and `peft.merge` refuses. The paper's rank is not known; its adapted parameters are about 5 %.
    """

    targets: tuple[str, ...] = ("qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

    def prepare(self, model: nn.Module, generator: torch.Generator) -> list[str]:
        names, head = list[str](), head_names(model)
        for name, rows in self.find(model).items():
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear), "find finds nothing else"
            scale = self.alpha / self.rank
            layer = LNLoraLinear(base, rows, self.rank, scale, self.dropout, generator)
            model.set_submodule(name, layer.train(base.training))
            own = ("lora_a", "lora_b", "lora_norm.weight", "lora_norm.bias")
            names += [f"{name}.{part}" for part in own]
        return [*names, *head]


class LNLoraLinear(nn.Linear, Inserted):
    """y = x W^T + bias, with scale * B_i A_i LN(x) added to ranges of the output rows.

    Args:
        base: the layer to replace, whose parameters it shares.
        rows: disjoint ranges (start, stop) of its output rows; None is all of them.
        rank: columns of each B_i, rows of each A_i.
        scale: factor of the update.
        dropout: dropout of the update's input, in updates.
        generator: draws A.
    """

    def __init__(
        self,
        base: nn.Linear,
        rows: Rows | None,
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        start = LoraLinear(
            base, rows=rows, rank=rank, scale=scale, dropout=dropout, generator=generator
        )
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.lora_a, self.lora_b = start.lora_a, start.lora_b
        self.lora_norm = nn.LayerNorm(base.in_features).to(base.weight)
        self.rows, self.scale, self.dropout = rows or ((0, base.out_features),), scale, dropout

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        low = dropout(self.lora_norm(input), self.dropout, self.training)
        downs = linear(low, self.lora_a).chunk(len(self.rows), -1)
        ups = self.lora_b.split([stop - start for start, stop in self.rows])
        out = linear(input, self.weight, self.bias)
        for (start, stop), down, up in zip(self.rows, downs, ups, strict=True):
            change = self.scale * linear(down, up)
            out = out + nn.functional.pad(change, (start, self.out_features - stop))
        return out
