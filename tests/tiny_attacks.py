"""Every registered attack made short, and the labels that an attack can be seen to change."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.threat import ThreatModel

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 4.0}
"""Norm -> a radius at which tiny images are fooled, some of them."""

FEW: dict[str, Any] = {"steps": 3, "n_queries": 25, "step_size": None}
"""Field -> a small value, for the attacks that have it."""


def short(kind: type[Attack], norm: str, eps: float | None = None, **options: Any) -> Attack:
    """The attack with few steps, where it has steps, under a threat in this norm."""
    known = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore
    fields = {"norm": None, "eps": None} | FEW | options
    attack = kind(**{name: value for name, value in fields.items() if name in known})
    return attack.under(ThreatModel(norm, EPS[norm] if eps is None else eps, (0.0, 1.0)))


def has(kind: type[Attack], field: str) -> bool:
    """Whether the attack has this field."""
    return any(own.name == field for own in dataclasses.fields(kind))  # pyright: ignore


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """An attack may leave alone what is misclassified to begin with, so labels are what is seen."""
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x).argmax(1)


def generator(seed: int = 0) -> torch.Generator:
    """A source of draws of its own."""
    return torch.Generator().manual_seed(seed)
