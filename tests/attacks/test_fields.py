"""What attacks refuse when they are made, with the field's name, and their labels.

Norm, eps and bounds of all attacks: tests/contracts/test_attacks.py.
"""

from typing import Any

import pytest

from roli_fast.attacks import (
    APGD,
    APGDT,
    FAB,
    FGSM,
    MSD,
    PGD,
    AutoAttack,
    MultiAPGD,
    Square,
    Union,
)
from roli_fast.errors import ArgumentError, ArgumentTypeError

TWO = ("l1", "l1")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        *((PGD, {"steps": n}, "`steps`: expected an integer >= 1") for n in (0, 2.0, "3")),
        (PGD, {"step_size": 0}, "`step_size`: expected a number > 0"),
        (PGD, {"keep": "Best"}, "`keep`: expected 'last' or 'best' or 'adv"),
        (PGD, {"restarts": 2, "random_start": False}, "`restarts`.*random_start=True"),
        (PGD, {"loss": "kl", "random_start": False}, "`loss`.*random_start=True"),
        (PGD, {"loss": "kl", "targets": "random"}, "`loss`: expected a loss with a targeted form"),
        (PGD, {"targets": "likely"}, "`targets`: expected 'least_likely' or 'random' or None"),
        (FGSM, {"loss": "kl"}, "`loss`: expected 'ce', 'dlr' or 'margin'"),
        (APGD, {"keep": "last"}, "`keep`: expected 'adversarial' or 'best'"),
        (APGD, {"density": 1.5}, r"`density`: expected a number in \[0, 1\]"),
        (APGD, {"large_radius": True}, "`large_radius`: expected False, got True in linf"),
        (APGD, {"large_radius": True, "norm": "l1", "steps": 4}, "`steps`: expected 3, 5 or more"),
        (FAB, {"eta": 0.5}, r"`eta`: expected a number in \[1, 2\]"),
        (Square, {"loss": "dlr"}, "`loss`: expected 'margin' or 'ce'"),
        (MultiAPGD, {"norms": TWO, "eps": (1, 2)}, "`norms`: expected one or more different"),
        (MultiAPGD, {"norms": "l1"}, "`norms`: expected several values"),
        (MultiAPGD, {"norms": ("l1",), "eps": (1, 2, 3)}, "`eps`: expected one for.*got 3 for"),
        (MultiAPGD, {"eps": (8, 0.5, 12)}, "`eps`: .*Did you mean 8/255"),
        (MSD, {"step_sizes": (1,)}, "`step_sizes`: expected one for each norm"),
        (AutoAttack, {"version": "fast"}, "`version`: expected .*'standard'.*got 'fast'"),
        (AutoAttack, {"attacks": ("fab",)}, "`attacks`: expected none.*version='custom'"),
        (AutoAttack, {"version": "custom"}, "`attacks`: expected some of: apgd-ce.*got"),
        (AutoAttack, {"version": "custom", "attacks": ("pgd",)}, "`attacks`: expected some.*pgd"),
        (AutoAttack, {"norm": "l1", "steps": 1}, "`steps`: expected .*large_radius"),
        (Union, {"attacks": ()}, "`attacks`: expected attacks, got none.*Union.over"),
        (Union, {"attacks": (PGD(), PGD())}, "`attacks`: expected attacks that differ"),
        (Union.over, {"attack": PGD()}, "`attack`: expected one without norm and eps"),
    ],
)
def test_what_an_attack_cannot_be_is_named(kind: Any, options: Any, message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        kind(**options)


CUSTOM = AutoAttack(version="custom", attacks=("square", "fab"), steps=4, n_queries=9)
BOTH = Union((AutoAttack(version="rand"), PGD(norm="l2", eps=0.5, steps=3)))


@pytest.mark.parametrize(
    ("attack", "label"),
    [
        (PGD(steps=20, loss="dlr", momentum=1.0, restarts=5, eot=2), "pgd-20-dlr-m1-r5-eot2"),
        (PGD(targets="least_likely"), "pgd-10-least-likely"),
        (APGD("l1", loss="dlr", restarts=5, large_radius=True), "apgd-dlr-100-r5-large"),
        (APGDT(), "apgd-t-dlr-100"),
        (MultiAPGD(l1_steps=10), "multi-apgd-10"),
        (MultiAPGD(steps=5, l1_steps=15), "multi-apgd-5-l1-15"),
        (AutoAttack(n_queries=7), "autoattack-standard-q7"),
        (CUSTOM, "autoattack-square+fab-4-q9"),
        (BOTH, "union-autoattack-rand-linf-0.03137+pgd-3-l2-0.5"),
        (Union.over(), "union-autoattack-standard-linf-0.03137+l2-0.5+l1-12"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_label_names_what_differs(attack: Any, label: str) -> None:
    assert attack.label == label
