"""How many passes an attack makes, counted on a toy, for what is planned and told beforehand."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.running.text import duration


class _Toy(nn.Module):
    """Right for class 0 by `margin`, from which every class moves away in its own way."""

    def __init__(self, classes: int, margin: float, slope: float) -> None:
        super().__init__()
        self.classes, self.margin, self.slope = classes, margin, slope

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(self.classes, dtype=x.dtype, device=x.device)
        moved = x.flatten(1).mean(1, keepdim=True)
        return self.slope * moved * places.square() - self.margin * places


_TOYS = ((10.0, 1e-3), (0.4, 1.0))
"""(margin, slope): one whose boundary no search reaches, and one where it lies outside the usual
balls, but within the images, where FAB looks closer at what it finds."""

_LOOKS = 6
"""Passes of an ensemble besides those of its parts: looks at the clean images, for signs."""

_SHORT = (10, 20)
"""Steps or queries that are counted of a longer search, whose passes grow in proportion."""


@lru_cache(maxsize=64)
def attack_passes(attack: Attack | None, classes: int = 10) -> int:
    """Forwards and backwards to the input of one image that resists an attack: about the most that
    it costs, in forwards (a backward to the input is one matrix product a layer, as a forward is).

    Counted, not written down: the attack is run on a blank image and toy models, a long one for its
    first steps. FAB's passes also depend on what it meets: some 5 % may be missing.

    Args:
        attack: with norm, eps and bounds, `.under(threat)`; None makes no pass.
        classes: of the model, which targeted attacks depend on.
    """
    if attack is None:
        return 0
    if len(attack.parts) > 1:
        return _LOOKS + sum(attack_passes(part, classes) for part in attack.parts)
    part = next(iter(attack.parts))
    for name in ("steps", "n_queries"):
        length = getattr(part, name, 0)
        if length > _SHORT[1]:
            changed: list[Any] = [replace(part, **{name: short}) for short in _SHORT]  # type: ignore[type-var]
            few, more = (attack_passes(short, classes) for short in changed)
            return more + (more - few) * (length - _SHORT[1]) // (_SHORT[1] - _SHORT[0])
    return _counted(part, classes)


def _counted(attack: Attack, classes: int) -> int:
    low, high = getattr(attack, "bounds", None) or (0.0, 1.0)
    x, y = torch.full((1, 3, 8, 8), min(max(low, 0.0), high)), torch.zeros(1, dtype=torch.int64)
    passes = []
    for margin, slope in _TOYS:
        toy, draws = _Toy(classes, margin, slope).eval(), torch.Generator().manual_seed(0)
        cost = attack.run(toy, x, y, draws).cost
        passes.append(cost.forward_images + cost.backward_images)
    return max(passes)


def expected(attacks: Sequence[Attack], classes: int, forward: float, images: float) -> str:
    """What some searches cost at most, in a sentence.

    Args:
        attacks: with norm, eps and bounds.
        classes: of the model.
        forward: seconds that one image takes to pass.
        images: how many are attacked, all of which may resist.
    """
    passes = sum(attack_passes(attack, classes) for attack in attacks)
    most = duration(passes * forward * images)
    return (
        f"the attacks: {passes:,} passes for an image that resists, {1000 * forward:.2g} ms each "
        f"by the first images; at most {most}"
    )
