"""The same quantities from Jacobians written out entry by entry, in fp64: the truth for kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """(B, 5) -> (B, 3) in fp64; small enough for Jacobians of everything."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(3)
            self.body = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.GELU())
            self.head = nn.Linear(4, 3, bias=bias)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass
class Jacobians:
    """Of N inputs, rows flattened: what a formula of the paper is made of.

    Args:
        features: (N, D).
        logits: (N, C).
        of_features: d phi / d backbone, (N D, p).
        of_logits: d f / d backbone, (N C, p).
        of_head: d f / d head, (N C, q).
    """

    features: Tensor
    logits: Tensor
    of_features: Tensor
    of_logits: Tensor
    of_head: Tensor


def jacobians(model: nn.Module, head: str, names: Sequence[str], x: Tensor) -> Jacobians:
    """By one backward pass for every entry of every output, in eval mode."""
    model.eval()
    layer, seen = model.get_submodule(head), []
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    own = dict(model.named_parameters())
    for parameter in own.values():
        parameter.requires_grad_(True)
    logits = model(x)
    hook.remove()
    backbone = [own[name] for name in names]
    return Jacobians(
        seen[0].detach(),
        logits.detach(),
        _rows(seen[0], backbone),
        _rows(logits, backbone),
        _rows(logits, list(layer.parameters())),
    )


def _rows(outputs: Tensor, parameters: list[Any]) -> Tensor:
    rows = []
    for entry in outputs.flatten():
        found = torch.autograd.grad(
            entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


def close(found: Tensor, truth: Tensor, tolerance: float = 1e-10) -> bool:
    """Whether they differ by at most `tolerance` times the largest entry."""
    assert found.shape == truth.shape
    size = float(truth.abs().max())
    assert size > 0, "a network that does nothing tells nothing"
    return float((found - truth).abs().max()) <= tolerance * size
