"""Attacks that a model was not trained against, beside those that its robustness is measured by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roli_fast.attacks import Attack
from roli_fast.attacks.base import BallAttack
from roli_fast.errors import ArgumentError, ConfigError, RoliFastError, describe
from roli_fast.evaluate.by_norm import columns
from roli_fast.evaluate.state import UNSEEN, accuracy_of, to_flags
from roli_fast.threat import ThreatModel


@dataclass(frozen=True)
class Unseen:
    """One attack in one ball, on every image that is classified right when clean."""

    threat: ThreatModel
    attack: BallAttack

    @property
    def group(self) -> str:
        """ "unseen square-5000 l2 0.5"."""
        return f"{UNSEEN} {self.attack.label} {self.threat.norm} {self.threat.eps:.4g}"


def each_unseen(attacks: Sequence[Attack], threat: ThreatModel) -> list[Unseen]:
    """Every attack in its own ball, or where it has none in each of the evaluation's.

    Args:
        attacks: as they are configured.
        threat: norms and radii of the evaluation.

    Raises:
        ConfigError: an attack that has no one ball, a radius without its norm, or two alike.
    """
    found: list[Unseen] = []
    for attack in attacks:
        try:
            if isinstance(attack, BallAttack) and attack.norm is None and attack.eps is not None:
                raise ArgumentError(describe("norm", "one beside an eps", None))
            under = [*columns(attack, threat).values()]
        except RoliFastError as error:
            fix = "An attack of its own ball needs both: square@l2=1, or norm and eps in YAML."
            raise ConfigError(f"`unseen`: {attack.label}: {error} {fix}") from error
        for one in under:
            if not isinstance(one, BallAttack) or one.norm is None or one.eps is None:
                raise ConfigError(describe("unseen", "attacks in one ball", one.label))
            found.append(Unseen(ThreatModel(one.norm, one.eps, threat.bounds), one))
            _ = one.parts  # raises where a part cannot take these settings
    names = [one.group for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(describe("unseen", "different attacks", f"{', '.join(twice)} twice"))
    return found


def together(entries: Sequence[dict[str, Any]], union: Tensor) -> dict[str, Any] | None:
    """What evaluation.json says of unseen attacks; None without any.

    Args:
        entries: one for each, with its accuracy and flags as "robust".
        union: bool (N,), which images stay right under all the norms of the evaluation.
    """
    if not entries:
        return None
    flags = torch.stack([to_flags(entry["robust"]["flags"]) for entry in entries]).all(0)
    return {
        "attacks": list(entries),
        "mean_accuracy": sum(entry["robust"]["accuracy"] for entry in entries) / len(entries),
        "union": accuracy_of(flags),
        "union_with_norms": accuracy_of(flags & union),
    }


def with_corruptions(unseen: dict[str, Any], shifts: dict[str, Any] | None) -> dict[str, Any]:
    """What `together` made, and who stays right under every corruption at every severity too; null
    without corruptions."""
    kinds = shifts["corruptions"].values() if shifts else ()
    levels = [level["flags"] for kind in kinds for level in kind.values()]
    flags = [to_flags(text) for text in (unseen["union_with_norms"]["flags"], *levels)]
    whole = accuracy_of(torch.stack(flags).all(0)) if levels else None
    return unseen | {"union_with_corruptions": whole}
