"""A pool of images in batches of the device's size: the same result, full batches, one graph."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from wavy import OneByOne, Wavy, pictures, predicted

from roli_fast.attacks import APGD, APGDT, FAB, FABT, PGD, Attack, Square
from roli_fast.engine import Engine

POOL, SIZE = 17, 4
X = pictures(POOL, torch.float32)
NET = Wavy(dtype=torch.float32)
Y = predicted(NET, X)
Y[3] = (Y[3] + 1) % 6
RADII = torch.linspace(0.4, 1.6, POOL)
EPS: dict[str, float] = {"linf": 0.012, "l2": 0.1, "l1": 0.7}

IN_STEP: tuple[Attack, ...] = (
    APGD(norm="l2", eps=EPS["l2"], steps=8),
    APGD(norm="l1", eps=0.7, steps=10, large_radius=True),
    APGD(eps=0.012, steps=4, restarts=2, loss="dlr", eot=2),
    APGD(eps=0.012, steps=4, keep="best", loss="kl"),
    APGDT(eps=0.012, steps=4, targets=3),
    Square(norm="l1", eps=EPS["l1"] * 1.6, n_queries=12),
    PGD(eps=0.012, step_size=0.003, steps=4, keep="adversarial", momentum=1.0),
    PGD(eps=0.012, step_size=0.003, steps=3, targets="random", loss="dlr", keep="best"),
)
"""Attacks whose passes take all samples that are left: their batches are known."""

IN_TURN: tuple[Attack, ...] = (
    FAB(norm="linf", eps=EPS["linf"], steps=5, restarts=2),
    FAB(norm="l2", eps=EPS["l2"], steps=5, restarts=2, minimal=False),
    FABT(norm="l1", eps=0.3, steps=5, targets=2),
    FABT(norm="linf", eps=EPS["linf"], steps=5, targets=2, minimal=False),
)
"""FAB decides batch by batch whether a gradient comes from the forward that was made."""


def source() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def run(attack: Any, size: int | None) -> tuple[Any, list[int]]:
    model = OneByOne(NET)
    options = {"eps": RADII * attack.eps}
    result = attack.run(Engine(batch_size=size).bind(model), X, Y, source(), **options)
    assert result.cost.forwards == len(model.sizes)
    assert result.cost.forward_images == sum(model.sizes)
    return result, model.sizes


def same(a: Any, b: Any) -> bool:
    extra = [(vars(a)[k], vars(b)[k]) for k in ("fooled", "distance", "queries") if k in vars(a)]
    flags = all(p is q if p is None else torch.equal(p, q) for p, q in extra)
    return flags and torch.equal(a.x_adv, b.x_adv) and a.notes == b.notes


def in_batches(sizes: list[int]) -> list[int]:
    """Passes over so many images, each in full batches and what is left."""
    return [min(SIZE, count - first) for count in sizes for first in range(0, count, SIZE)]


def name(attack: Any) -> str:
    return f"{attack.label}-{attack.norm}-{getattr(attack, 'minimal', '')}"


@pytest.mark.parametrize("attack", IN_STEP, ids=name)
def test_the_same_result_in_full_batches(attack: Attack) -> None:
    whole, passes = run(attack, None)
    split, sizes = run(attack, SIZE)
    assert same(whole, split)
    assert sizes == in_batches(passes)
    images = (whole.cost.forward_images, whole.cost.backward_images)
    assert images == (split.cost.forward_images, split.cost.backward_images)


@pytest.mark.parametrize("attack", IN_TURN, ids=name)
def test_fab_gives_the_same_in_batches(attack: Attack) -> None:
    whole, passes = run(attack, None)
    split, sizes = run(attack, SIZE)
    assert same(whole, split) and 2 < whole.fooled.sum() < POOL
    assert max(sizes) == SIZE
    assert sum(size < SIZE for size in sizes) <= len(passes)  # one a pass, not one a batch


@pytest.mark.parametrize(
    "attack",
    [
        APGD("l2", eps=0.1, steps=12, restarts=2),
        APGD("l1", eps=0.7, steps=15, large_radius=True),
        APGDT(eps=0.012, steps=6, targets=2),
        Square("l2", eps=2 * EPS["l2"], n_queries=30),
        PGD("l2", eps=0.1, eot=2, keep="adversarial", momentum=1.0),
        PGD("l1", eps=0.7, restarts=3, keep="adversarial"),
    ],
    ids=name,
)
def test_who_leaves_saves_whole_batches(attack: Any) -> None:
    """Without it every pass has five batches to its end; with it those left fill fewer, and all but
    a pass's last are full. The result is the same."""
    leaving, sizes = run(attack, SIZE)
    staying, all_sizes = run(replace(attack, compact=False), SIZE)
    assert same(leaving, staying) and 3 < leaving.fooled.sum() < POOL
    assert len(sizes) < len(all_sizes) and sum(sizes) < 0.9 * sum(all_sizes)
    assert sizes == in_batches(run(attack, None)[1])
