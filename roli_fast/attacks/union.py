"""Robustness to several threats at once: an image is robust if it survives every one of them.

Tramer & Boneh 2019 (arXiv:1904.13000), the "max" strategy; RAMP and robust-finetuning evaluate so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from roli_fast.attacks.auto_attack import AutoAttack
from roli_fast.attacks.base import Attack, AttackInputs, BallAttack
from roli_fast.attacks.ensemble import EnsembleResult, search_in_turn
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.passes import Passes
from roli_fast.attacks.several_norms import USUAL_NORMS
from roli_fast.engine import InputGradient, bound, plain
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.threat import Bounds, ThreatModel, check_images, usual_eps

USUAL = tuple((norm, None) for norm in USUAL_NORMS)
"""The threats that multi-norm papers report, with each norm's usual radius."""


@dataclass(frozen=True)
class Union(Attack):
    """Attacks under different threats, each on the images that those before left right.

    >>> Union.over([("linf", 8 / 255), ("l2", 0.5), ("l1", 12)])(model, x, y)
    >>> Union((PGD(norm="linf"), Square(norm="l2", eps=0.5)), every=True).run(model, x, y)

    An image's result is what fooled it first, which `fooled_by` names; what survives comes back as
    it was. The cost is 1 forward on all images, that of the attacks, and 1 forward each on what
    they found.

    Args:
        attacks: one for each threat, with norm, eps and bounds of its own.
        every: attack all images under every threat, also those that one before has fooled: it
            costs more and tells the accuracy under each (`robust_under` of the result).
    """

    attacks: tuple[Attack, ...]
    every: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", tuple(self.attacks))
        wrong = [type(attack).__name__ for attack in self.attacks if not isinstance(attack, Attack)]
        if wrong or not self.attacks:
            fix = "Union.over makes them from pairs of norm and eps."
            raise ArgumentTypeError(describe("attacks", "attacks", wrong or "none", fix))
        if len(set(self.names)) < len(self.attacks):
            raise ArgumentError(describe("attacks", "attacks that differ", self.names))

    @classmethod
    def over(
        cls,
        threats: Sequence[tuple[str, float | None]] = USUAL,
        *,
        attack: Attack | None = None,
        bounds: Bounds = (0.0, 1.0),
        every: bool = False,
    ) -> "Union":
        """One attack under several threats.

        Args:
            threats: pairs of norm and eps, in the order in which they are tried; None is the
                norm's usual radius.
            attack: its fields norm and eps have to be None; AutoAttack by default.
            bounds: lowest and highest valid pixel.
            every: see `Union`.
        """
        attack = attack or AutoAttack(norm=None, eps=None, bounds=None)
        own = {name: getattr(attack, name, None) for name in ("norm", "eps")}
        if any(value is not None for value in own.values()):
            fix = "The threats tell them: PGD(norm=None), say."
            raise ArgumentError(describe("attack", "one without norm and eps", own, fix))
        made = [ThreatModel(norm, eps, bounds) for norm, eps in threats]  # pyright: ignore
        return cls(tuple(attack.under(threat) for threat in made), every)

    @property
    def names(self) -> tuple[str, ...]:
        """ "autoattack-standard linf 0.03137", one for each threat."""
        return tuple(f"{attack.label} {_threat(attack)}".strip() for attack in self.attacks)

    @property
    def label(self) -> str:
        """ "union-autoattack-standard-linf-0.03137+l2-0.5"."""
        labels = {attack.label for attack in self.attacks}
        if len(labels) == 1:
            names = [_threat(attack) for attack in self.attacks]
            return f"union-{labels.pop()}-" + "+".join(names).replace(" ", "-")
        return "union-" + "+".join(self.names).replace(" ", "-")

    @property
    def reach(self) -> float:
        """The largest of its attacks'."""
        return max(attack.reach for attack in self.attacks)

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The parts of all its attacks."""
        return tuple(part for attack in self.attacks for part in attack.parts)

    def under(self, threat: ThreatModel) -> "Union":
        """The same with every field of its attacks that is None taken from `threat`."""
        return replace(self, attacks=tuple(attack.under(threat) for attack in self.attacks))

    def search(self, inputs: AttackInputs) -> EnsembleResult:
        x = inputs.x
        for attack in self.attacks:
            bounds = getattr(attack, "bounds", None)
            x = x if bounds is None else check_images(x, bounds)
        x, model = x.detach(), bound(inputs.model, inputs.engine)
        with InputGradient(plain(model)) as gradient, torch.no_grad():
            right = is_right(Passes(gradient).clean(x, inputs.y), inputs.y)
            cost = gradient.cost
        inputs = replace(inputs, model=model, x=x, engine=None)
        found = search_in_turn(self.attacks, inputs, right, self.names, every=self.every)
        return replace(found, cost=cost + found.cost)


def _threat(attack: Attack) -> str:
    if not isinstance(attack, BallAttack):
        return ""
    eps = attack.eps
    if eps is None and attack.norm and attack.bounds:
        eps = usual_eps(attack.norm, attack.bounds)
    return f"{attack.norm} {eps if eps is None else format(eps, '.4g')}"
