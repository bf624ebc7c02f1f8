"""The table of losses, its fallback for few classes, targets, and when a sample is fooled."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import Mixed, images
from torch import Generator, Tensor, nn

from roli_fast.attacks import APGD, CW, FAB, FGSM, PGD, Attack, Square
from roli_fast.attacks.objective import (
    Goal,
    check_target,
    choose,
    is_right,
    most_likely_others,
    notes_on,
)
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.losses import cross_entropy, dlr, dlr_targeted, margin

Y = torch.tensor([0, 2, 1, 3])
TARGET = torch.tensor([1, 3, 0, 0])
NAN = float("nan")


def logits(classes: int = 4) -> torch.Tensor:
    return 4 * images(4, classes, seed=3) - 2


def test_away_from_the_label_and_towards_a_target() -> None:
    z = logits()
    for name, loss in (("ce", cross_entropy), ("dlr", dlr), ("margin", margin)):
        assert torch.equal(Goal(name, Y)(z, Y), loss(z, Y))
    assert torch.equal(Goal("ce", Y, TARGET)(z, Y), -cross_entropy(z, TARGET))
    assert torch.equal(Goal("dlr", Y, TARGET)(z, Y), dlr_targeted(z, Y, TARGET))
    assert torch.equal(Goal("margin", Y, TARGET)(z, Y), -margin(z, TARGET))


@pytest.mark.parametrize("target", [None, TARGET], ids=["away", "towards"])
def test_a_loss_of_the_callers_own(target: Tensor | None) -> None:
    """One loss a sample, or the batch's mean, which is taken image by image."""
    z = logits()
    for own in (cross_entropy, nn.CrossEntropyLoss()):
        assert torch.allclose(Goal(own, Y, target)(z, Y), Goal("ce", Y, target)(z, Y))
    assert Goal(nn.CrossEntropyLoss(), Y[:0])(z[:0], Y[:0]).shape == (0,)


@pytest.mark.parametrize("classes", [2, 3])
def test_below_four_classes_the_margin_takes_the_place_of_dlr(classes: int) -> None:
    z, y = logits(classes), Y % classes
    assert torch.equal(Goal("dlr", y)(z, y), margin(z, y))
    target = (y + 1) % classes
    assert torch.equal(Goal("dlr", y, target)(z, y), -margin(z, target))
    (note,) = notes_on("dlr", classes)
    assert note == f"loss dlr needs 4 classes, the model has {classes}: margin was taken"
    assert notes_on("dlr", 4) == () and torch.equal(Goal("dlr", Y)(logits(), Y), dlr(logits(), Y))


def test_a_nan_is_never_right() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, NAN], [NAN, 0.0]])
    assert is_right(z, torch.tensor([0, 0, 0, 0])).tolist() == [True, False, False, False]
    y = torch.tensor([0, 0, 0, 0])
    assert Goal("ce", y).reached(z).tolist() == [False, True, True, True]
    assert Goal("ce", y, 1 - y).reached(z).tolist() == [False, True, False, False]


def test_the_least_likely_class_is_not_the_label() -> None:
    z = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    found = choose("least_likely", z, torch.tensor([1, 1]), None, torch.arange(2))
    assert found.tolist() == [2, 0]


@pytest.mark.parametrize("classes", [2, 10])
def test_random_targets_cover_all_wrong_classes_evenly(classes: int) -> None:
    n = 3000
    y, ids = torch.arange(n) % classes, torch.arange(n)
    z = torch.zeros(n, classes)
    found = choose("random", z, y, torch.Generator().manual_seed(0), ids)
    offset = (found - y) % classes
    counts = torch.bincount(offset, minlength=classes)
    assert counts[0] == 0
    expected = n / (classes - 1)
    assert (counts[1:] - expected).abs().max() <= 4 * expected**0.5


def test_the_likeliest_other_classes_in_order() -> None:
    z = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 4.0, 6.0]])
    y = torch.tensor([0, 1])
    assert most_likely_others(z, y, 2).tolist() == [[2, 1], [3, 2]]
    assert most_likely_others(z, y, 9).tolist() == [[2, 1, 3], [3, 2, 0]]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Y, "`target`: expected other classes than `y`.*sample 0"),
        (TARGET + 9, r"`target`: expected labels in \[0, 4\)"),
        (TARGET.int(), "`target`: expected one class a sample, an int64 tensor"),
    ],
)
def test_targets_that_cannot_be_aimed_at(target: Any, message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        check_target(target, Y, logits())


@pytest.mark.parametrize(
    "attack", [PGD(), APGD(steps=4), FGSM(), Square(eps=0.05, n_queries=8, loss="ce")], ids=repr
)
def test_attacks_take_a_callable_for_a_losss_name(attack: Any) -> None:
    model, x = Mixed().eval(), images(8, 3, 6, 6)
    y = model(x).argmax(1)
    named, own = (
        one(model, x, y, Generator().manual_seed(1))
        for one in (attack, replace(attack, loss=cross_entropy))
    )
    assert torch.equal(named, own)


AIMED = [APGD(eps=0.5, steps=20), APGD(eps=0.5, steps=20, keep="best"), FAB("l2", 5.0, steps=20)]


@pytest.mark.parametrize("attack", AIMED, ids=repr)
def test_a_given_target_is_what_counts(attack: Attack) -> None:
    """FAB finds each target no farther than CW does; a sample that was there has distance 0."""
    model, x = Mixed().eval(), images(8, 3, 6, 6)
    likeliest, target = model(x).topk(2).indices.T.contiguous()
    target[3] = likeliest[3]
    y = torch.where(likeliest == target, (target + 1) % 4, likeliest)
    found = attack.run(model, x, y, Generator().manual_seed(1), target=target)
    assert torch.equal(model(found.x_adv).argmax(1), target)
    assert found.fooled is None or bool(found.fooled.all())
    if isinstance(attack, FAB):
        cw = CW("l2", 5.0).run(model, x, y, target=target)
        assert found.distance[3] == 0 and (found.distance < 1.02 * cw.distance + 1e-9).all()
    with pytest.raises(ArgumentError, match="`target`: expected other classes than `y`"):
        attack.run(model, x, y, target=y)
