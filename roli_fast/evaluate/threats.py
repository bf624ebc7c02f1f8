"""Under which threats an attack searches: the columns and groups of results that it makes."""

from collections.abc import Sequence
from typing import Any

from roli_fast.attacks import Attack
from roli_fast.attacks.base import BallAttack
from roli_fast.errors import ArgumentError, ConfigError, RoliFastError, describe
from roli_fast.threat import ThreatModel

UNION = "union"
"""The column of images that stay right in all the others."""


def columns(attack: Attack, threat: ThreatModel) -> dict[str, Attack]:
    """Column -> attack, as a training run validates and tests.

    With one norm that is the attack under its label. With several it is the attack in each of them
    under the norm's name; an image counts for the union where it is right in every column. That is
    so for attacks in several norms as well (multi_apgd, msd): each norm is searched by itself, with
    the steps that the attack makes there.

    An attack that has norms of its own is one attack, under its label, and the measure by itself:
    a cheap validation in the weakest norm (eps left out is the threat's for that norm), a
    multi_apgd of the two norms that are trained on, or a `Union`.

    Args:
        attack: as it is configured.
        threat: what it follows.

    Raises:
        ArgumentError: a radius or step size is given and no norm, where there are several norms: it
            would be the same in all of them.
    """
    fields: dict[str, Any] = vars(attack)
    if not threat.other_norms or fields.get("norm") or fields.get("norms"):
        one = attack.under(threat)
        return {one.label: one}
    for name in ("eps", "step_size"):
        if fields.get(name) is not None:
            what = f"null for an attack in several norms ({', '.join(t.norm for t in threat.each)})"
            fix = "Leave it out: the radii are the threat's. Or give the attack a norm as well."
            raise ArgumentError(describe(name, what, fields[name], fix))
    each = {alone.norm: attack.under(alone) for alone in threat.each}
    first = each[threat.norm]
    return {first.label: first} if all(other == first for other in each.values()) else each


def each_unseen(attacks: Sequence[Attack], threat: ThreatModel) -> dict[str, BallAttack]:
    """Group of results -> attack: every attack in its own ball, or where it has none in each of the
    evaluation's; "unseen square-5000 l2 0.5" is one of the names.

    Args:
        attacks: as they are configured.
        threat: norms and radii of the evaluation.

    Raises:
        ConfigError: an attack that has no one ball, a radius without its norm, or two alike.
    """
    found: dict[str, BallAttack] = {}
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
            _ = one.parts  # raises where a part cannot take these settings
            group = f"unseen {one.label} {one.norm} {one.eps:.4g}"
            if group in found:
                raise ConfigError(describe("unseen", "different attacks", f"{group} twice"))
            found[group] = one
    return found
