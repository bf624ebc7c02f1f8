"""The attacks with torchattacks' interface, with few steps, on a network that shows any change."""

from typing import Any

import torch
from tiny_models import Mixed, images
from torch import Tensor, nn

import roli_fast.compat.torchattacks as torchattacks

X = images(6, 3, 6, 6)
EPS = 8 / 255
SEARCHES = ("APGD", "APGDT", "FAB", "Square", "AutoAttack")
GRADIENT = tuple(name for name in torchattacks.__all__ if name not in (*SEARCHES, "MultiAttack"))
AIMING = tuple(name for name in GRADIENT if name != "TPGD")
"""And FAB and Square, whose images are not always the target's."""
NOT_AIMING = ("TPGD", "APGD", "APGDT", "AutoAttack", "MultiAttack")


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        classes = model.eval()(x).argmax(1)
    for module, training in modes:
        module.training = training
    return classes


Y = predicted(Mixed(), X)


def build(name: str, model: Any, **options: Any) -> Any:
    """The attack with few steps."""
    if name == "MultiAttack":
        return torchattacks.MultiAttack(
            [torchattacks.PGD(model, steps=2, **options), torchattacks.APGD(model, steps=3)]
        )
    short = dict(n_queries=20) if name == "Square" else {}
    return getattr(torchattacks, name)(model, **short, **options)


def with_generator(attack: Any, seed: int = 0) -> Any:
    for one in (attack, *getattr(attack, "attacks", ())):
        one.generator = torch.Generator().manual_seed(seed)
    return attack
