"""One attack under a threat of several norms: which columns of results it makes."""

from typing import Any

from roli_fast.attacks import Attack
from roli_fast.errors import ArgumentError, describe
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
        return _one(attack.under(threat))
    for name in ("eps", "step_size"):
        if fields.get(name) is not None:
            what = f"null for an attack in several norms ({', '.join(t.norm for t in threat.each)})"
            fix = "Leave it out: the radii are the threat's. Or give the attack a norm as well."
            raise ArgumentError(describe(name, what, fields[name], fix))
    each = {alone.norm: attack.under(alone) for alone in threat.each}
    first = each[threat.norm]
    return _one(first) if all(other == first for other in each.values()) else each


def _one(attack: Attack) -> dict[str, Attack]:
    return {attack.label: attack}
