"""Every registered attack made short, and the labels that an attack can be seen to change."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.norms import NORMS
from roli_fast.threat import ThreatModel

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 4.0}
"""Norm -> a radius at which tiny images are fooled, some of them."""

FEW: dict[str, Any] = {
    **{"steps": 3, "n_queries": 25, "step_size": None},
    **{"version": "custom", "attacks": ("apgd-ce", "square")},
}
"""Field -> a small value, for the attacks that have it; AutoAttack with two of its components."""


def short(kind: type[Attack], norm: str, eps: float | None = None, **options: Any) -> Attack:
    """The attack with few steps, where it has steps, under a threat in this norm."""
    return short_under(kind, ThreatModel(norm, EPS[norm] if eps is None else eps), **options)


def short_under(kind: type[Attack], threat: ThreatModel, **options: Any) -> Attack:
    """The attack with few steps under this threat."""
    known = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore
    fields = {"norm": None, "norms": None, "eps": None} | FEW | options
    return kind(**{name: value for name, value in fields.items() if name in known}).under(threat)


def in_norm(kind: type[Attack], **fields: Any) -> dict[str, Any]:
    """Fields with norm and eps as this attack has them: tuples of one where it takes several."""
    if not has(kind, "norms"):
        return fields
    several = {
        name: (value,) if name in ("norm", "eps") and value is not None else value
        for name, value in fields.items()
    }
    return {"norms" if name == "norm" else name: value for name, value in several.items()}


def balls(attack: Attack) -> list[tuple[str, float]]:
    """(norm, eps) of every ball in which a result may lie."""
    own: Any = attack
    if has(type(attack), "norms"):
        return list(zip(own.norms, own.eps, strict=True))
    return [(own.norm, own.eps)]


def inside_one(x_adv: Tensor, x: Tensor, attack: Attack) -> Tensor:
    """Whether each sample (B,) lies in one of the attack's balls, in exact arithmetic."""
    radii = [(norm, torch.tensor(eps * attack.reach).double()) for norm, eps in balls(attack)]
    near = [NORMS[norm].distance(x_adv, x) <= radius for norm, radius in radii]
    return torch.stack(near).any(0)


def in_box(x_adv: Tensor) -> bool:
    """Whether all pixels are in [0, 1]; so are none."""
    return bool((0 <= x_adv).all() and (x_adv <= 1).all())


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
