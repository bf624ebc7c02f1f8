"""AutoLoRa: the clean images go through a low-rank branch of their own (Xu et al., ICLR 2024,
arXiv:2310.01818)."""

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from roli_fast.attacks import Attack
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.losses import cross_entropy, kl
from roli_fast.models.classifier import head_name, name_of
from roli_fast.peft.base import head_names
from roli_fast.threat import check_positive
from roli_fast.train.objectives.base import (
    BESIDE,
    OBJECTIVES,
    Objective,
    Step,
    Terms,
    attacked,
    needs_attack,
)

Shape = Literal["kernel", "flat"]


@OBJECTIVES.register("autolora")
@dataclass(frozen=True)
class AutoLoRa(Objective):
    """(1 - A) CE(clean) + A CE(attacked) + kl_weight * A * KL(clean || attacked).

    The clean images go through W + alpha / rank * B A of every convolution and linear layer but the
    first, which sees the image, and the head; the gradient of theirs reaches A, B and the head
    alone. The attacked ones, and the attack, go through W: a gradient to all but A and B, which are
    dropped at the stage's end. Both move BatchNorm's running statistics. The KL is a mean over the
    batch, with a gradient on either side. A, in the loss, is the branch's clean accuracy on the
    training images, measured at the beginning of each epoch in eval mode and without augmentation:
    with a fresh head the first epoch is nearly clean. Its rate is schedule auto.

    Args:
        rank: of B A, 8 in the paper.
        alpha: B A is multiplied by alpha / rank.
        kl_weight: 6 in the paper.
        shape: what B A is of a convolution with k x k kernels: "kernel", as in the authors' code, B
            (out / groups k, rank k) and A (rank k, in k), read as the kernels; or "flat", LoRA's
            own, B (out, rank) and A (rank, in / groups k k). A is drawn from a standard normal
            distribution, B is zero.
    """

    rank: int = 8
    alpha: float = 1.0
    kl_weight: float = 6.0
    shape: Shape = "kernel"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ArgumentError(describe("rank", "an integer >= 1", self.rank))
        check_positive("alpha", self.alpha)
        check_positive("kl_weight", self.kl_weight, zero=True)
        check_choice("shape", self.shape, get_args(Shape))

    def beside(self, model: nn.Module, generator: Generator) -> nn.Module:
        kinds, head = (nn.Conv2d, nn.Linear), head_name(model)
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds) and n != head]
        layers = [(n, m) for n, m in layers if m._parameters.get("weight") is not None]
        if len(layers) < 2:
            expected = "a network with convolutions or linear layers behind its first"
            got = f"autolora for {name_of(model)}"
            raise ArgumentError(describe("objective", expected, got, "Take trades."))
        return Branch(dict(layers[1:]), self, generator)

    def measured(self, model: nn.Module) -> nn.Module:
        return Through(model)

    def check(self, attack: Attack | None) -> None:
        needs_attack(attack, "autolora")

    def images(self, attack: Attack) -> int:
        return 2

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        """The logits are those on the attacked images."""
        (x, y, _ids), share, to_maps = step.batch, step.accuracy, step.engine.to_memory_format
        x_adv = attacked(step)
        clean = Through(step.model)(to_maps(x))
        moved = step.model(x_adv)
        loss = (1 - share) * cross_entropy(clean, y).mean()
        loss = loss + share * cross_entropy(moved, y).mean()
        loss = loss + self.kl_weight * share * kl(moved, clean).mean()
        return Terms(loss, moved.detach())


class Branch(nn.Module):
    """A and B of every layer.

    Args:
        layers: name in the network -> layer.
        options: rank, alpha and shape.
        generator: the CPU's, draws A.
    """

    def __init__(
        self, layers: dict[str, nn.Module], options: AutoLoRa, generator: Generator
    ) -> None:
        super().__init__()
        self.names, self.scale = tuple(layers), options.alpha / options.rank
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for layer in layers.values():
            weight = cast(Tensor, layer.weight)
            rows, columns, rank = len(weight), weight[0].numel(), options.rank
            if options.shape == "kernel" and weight.ndim == 4:
                high, wide = weight.shape[2:]
                groups = cast(nn.Conv2d, layer).groups
                rows, rank = rows // groups * high, rank * high
                columns = weight.shape[1] * groups * wide
            drawn = torch.randn(rank, columns, generator=generator)
            self.a.append(nn.Parameter(drawn.to(weight)))
            self.b.append(nn.Parameter(weight.new_zeros(rows, rank)))

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Name -> tensor of the network with the branch; only A, B and the head train in it."""
        kept = {*head_names(model)}
        named = ((n, p) for n, p in model.named_parameters() if n.split(".")[0] != BESIDE)
        out = {name: p.detach() for name, p in named if name not in kept}
        for name, a, b in zip(self.names, self.a, self.b, strict=True):
            weight = out[f"{name}.weight"]
            out[f"{name}.weight"] = weight + self.scale * (b @ a).view(weight.shape)
        return out


class Through(nn.Module):
    """The network with its branch: images -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        branch = cast(Branch, self.model.get_submodule(BESIDE))
        return functional_call(self.model, branch.tensors(self.model), (x,))
