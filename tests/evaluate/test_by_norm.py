"""Which columns one attack makes under a threat of several norms, and who is right in them all."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from test_evaluate_accuracy import Flips, Reads, batches

from roli_fast.attacks import MSD, PGD, Attack, AutoAttack, MultiAPGD, Union
from roli_fast.errors import ArgumentError
from roli_fast.evaluate import columns, evaluate
from roli_fast.threat import ThreatModel

THREE = ThreatModel("linf", 0.1, other_norms=("l2", "l1"), other_eps=(0.5, 12.0))
OPEN: Any = dict(norm=None, eps=None, step_size=None, bounds=None)


@dataclass(frozen=True)
class Own(Flips):
    """Follows no threat."""

    def under(self, threat: ThreatModel) -> "Own":
        return self


def test_one_norm_is_one_column_and_several_are_the_attack_in_each() -> None:
    attack = PGD(**OPEN, steps=3)
    assert columns(attack, ThreatModel("l2", 0.5)) == {"pgd-3": PGD("l2", 0.5, None, 3)}
    found: dict[str, Any] = columns(attack, THREE)
    assert [(name, one.norm, one.eps) for name, one in found.items()] == [
        ("linf", "linf", 0.1),
        ("l2", "l2", 0.5),
        ("l1", "l1", 12.0),
    ]
    assert columns(Own(), THREE) == {"flips": Own()}


@pytest.mark.parametrize("kind", [MultiAPGD, MSD])
def test_an_attack_in_several_norms_is_made_in_each_alone(kind: Any) -> None:
    found: dict[str, Any] = columns(kind(norms=None, eps=None, steps=3), THREE)
    assert [(one.norms, one.eps) for one in found.values()] == [
        (("linf",), (0.1,)),
        (("l2",), (0.5,)),
        (("l1",), (12.0,)),
    ]


def test_norms_of_its_own_make_one_column() -> None:
    """A radius that is left out is the threat's for that norm."""
    own: dict[str, Any] = columns(AutoAttack(norm="l1", eps=None, version="apgd"), THREE)
    assert list(own) == ["autoattack-apgd"] and own["autoattack-apgd"].eps == 12.0
    two: Any = next(iter(columns(MultiAPGD(norms=("linf", "l1"), eps=None), THREE).values()))
    assert (two.norms, two.eps) == (("linf", "l1"), (0.1, 12.0))
    union = Union.over([("linf", 0.1), ("l2", 0.5)], attack=PGD(**OPEN))
    assert columns(union, THREE) == {union.label: union}


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (PGD(norm=None, eps=0.1), r"`eps`: expected null .* \(linf, l2, l1\), got 0.1"),
        (PGD(norm=None, eps=None, step_size=0.01), "`step_size`: expected null"),
        (MultiAPGD(norms=None, eps=(0.1, 0.5, 12.0)), "`eps`: expected null"),
    ],
)
def test_one_radius_for_all_norms_is_a_slip(attack: Attack, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        columns(attack, THREE)


def test_the_union_by_hand() -> None:
    """Six images, 2 and 5 wrong to begin with; one attack flips the second, one the fifth."""
    attacks = {"linf": Flips((0.125, 0.25)), "l2": Flips((0.5,)), "l1": Flips()}
    result = evaluate(Reads(), batches(4, 2), attacks)
    assert {name: flags.int().tolist() for name, flags in result.robust.items()} == {
        "linf": [1, 0, 0, 1, 1, 0],
        "l2": [1, 1, 0, 1, 0, 0],
        "l1": [1, 1, 0, 1, 1, 0],
    }
    assert result.union.tolist() == [True, False, False, True, False, False]


def test_a_column_has_the_draws_of_the_attack_by_itself() -> None:
    """So a norm's accuracy does not depend on which norms stand beside it."""
    attack = PGD("linf", 0.05, None, 1)
    together = evaluate(Reads(), batches(6), {"linf": attack, "again": attack}, seed=3)
    alone = evaluate(Reads(), batches(6), [attack], seed=3)
    assert torch.equal(together.robust["linf"], alone.robust["pgd-1"])
    assert torch.equal(together.robust["linf"], together.robust["again"])
