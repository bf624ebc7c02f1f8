"""What the objectives over several norms have in common."""

from collections.abc import Sequence

from roli_fast.attacks import Attack, MultiAPGD
from roli_fast.errors import ArgumentError, describe
from roli_fast.norms import NORMS
from roli_fast.train.objectives.base import needs_attack


def check_norms(name: str, norms: Sequence[str], *, fewest: int = 1) -> None:
    """Raise unless the field `name` holds so many norms or more, all different."""
    for norm in norms:
        if norm not in NORMS:
            raise ArgumentError(describe(name, f"any of: {', '.join(NORMS)}", repr(norm)))
    if len(norms) < fewest or len(set(norms)) < len(norms):
        raise ArgumentError(describe(name, f"{fewest} or more different norms", tuple(norms)))


def in_norms(
    attack: Attack | None, norms: Sequence[str] | None, objective: str, *, fewest: int = 1
) -> MultiAPGD:
    """The attack in these norms alone; in all of its own, `fewest` or more, for None.

    Raises:
        ArgumentError: there is none, it does not search norms one by one, or it has no radius for
            one of them.
    """
    attack = needs_attack(attack, objective)
    if not isinstance(attack, MultiAPGD):
        fix = "Write attack: multi_apgd, and name the norms under threat."
        expected = f"multi_apgd beside objective {objective}"
        raise ArgumentError(describe("attack", expected, repr(attack), fix))
    if norms is not None:
        return attack.only(*norms)
    own = attack.norms or ()
    if len(own) < fewest:
        fix = "Write threat.other_norms and threat.other_eps."
        raise ArgumentError(describe("norms", f"{fewest} or more in the attack", own, fix))
    return attack
