"""Targets where another library names the target and not the label."""

from typing import Any

import torch
from torch import Tensor

from roli_fast.attacks import Attack
from roli_fast.errors import ArgumentError, describe


def beside(labels: Tensor, target: Tensor) -> Tensor:
    """Labels, but where one is the target: a neighbour of it.

    PGD refuses a target that is the label, and here one may be (or all, where labels are targets).
    Towards a target, cross-entropy and margin do not depend on the label.
    """
    if target.shape != labels.shape:
        got = f"shape {tuple(target.shape)}"
        raise ArgumentError(describe("target", f"shape {tuple(labels.shape)}", got))
    neighbour = torch.where(target > 0, target - 1, target + 1)
    return torch.where(labels == target, neighbour, labels)


def aimed(attack: Attack, target: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Labels and options of a call that goes towards `target` (B,), where no label is known.

    Raises:
        ArgumentError: an attack that takes no target, or whose loss needs the label beside it.
    """
    if "target" not in attack.options:
        expected = "an attack that takes a target (PGD)"
        raise ArgumentError(describe("attack", expected, attack.label))
    loss = getattr(attack, "loss", None)
    if loss == "dlr":
        fix = "The dlr of a target depends on the label, which is not known here."
        raise ArgumentError(describe("loss", "'ce' or 'margin'", "'dlr'", fix))
    return beside(target, target), {"target": target}
