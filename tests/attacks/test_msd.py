"""Multi steepest descent against a plain version, and a choice of the candidate worked by hand."""

from typing import Any

import pytest
import torch
from textbook_apgd import of_model, project, sparse
from tiny_models import Counting, FixedLogits
from torch import Tensor
from waits import waits
from wavy import Wavy, pictures, predicted

from roli_fast.attacks import MSD
from roli_fast.engine import Cost, Engine
from roli_fast.errors import ArgumentError
from roli_fast.threat import known_values

EPS: dict[str, float] = {"linf": 0.09, "l2": 0.88, "l1": 5.7}
NORMS = tuple(EPS)


def attack(**options: Any) -> MSD:
    return MSD(norms=NORMS, eps=tuple(EPS.values()), **options)


def plain(
    model: Any, x: Tensor, y: Tensor, sizes: dict[str, float], steps: int
) -> tuple[Tensor, list[str]]:
    """Algorithm 1 of arXiv:1909.04068 for one image, and whose step was taken each time."""
    gradient = of_model(model, y)
    here = x
    grad, loss = gradient(x)
    best, taken = (loss, x), []
    for _ in range(steps):
        tried = []
        for norm, eps in EPS.items():
            move = grad / grad.norm() if norm == "l2" else grad.sign()
            if norm == "l1":
                move = sparse(grad, 0.05)
                move = move / move.abs().sum()
            point = project(here + sizes[norm] * eps * move, x, eps, norm)
            tried.append((gradient(point)[1], norm, point))
        loss, norm, here = max(tried, key=lambda item: item[0])
        taken.append(norm)
        grad, _ = gradient(here)
        if loss > best[0]:
            best = (loss, here)
    return best[1], taken


@pytest.mark.parametrize("steps", [1, 4, 12])
@pytest.mark.parametrize("given", [False, True])
def test_it_equals_a_plain_version(steps: int, given: bool) -> None:
    model, x = Wavy(), pictures(8)
    y = predicted(model, x)
    sizes = {"linf": min(1, 5 / steps), "l2": min(1, 5 / steps), "l1": min(1, 50 / 12 / steps)}
    options: dict[str, Any] = {}
    if given:
        sizes = {"linf": 0.4, "l2": 0.38, "l1": 0.4}
        options = {"step_sizes": tuple(sizes.values())}
    found = attack(steps=steps, **options)(model, x, y)
    taken = set()
    for i in range(8):
        truth, norms = plain(model, x[i], y[i], sizes, steps)
        assert torch.allclose(found[i], truth, rtol=0, atol=1e-9)
        taken |= set(norms)
    assert len(taken) > 1 or steps == 1


def test_the_choice_worked_by_hand() -> None:
    """Two pixels at 1/2, logits (a . x, 0), label 1: the loss grows with a . x alone. One step of
    eps: linf 0.1, l2 0.2, l1 0.25.

    a = (1, 1) gains 0.2, 0.283 and, one entry or both moved, 0.25: l2. a = (1, 0.01) gains 0.101,
    0.200 and 0.25: l1. With five pixels, a all ones: 0.5, 0.447 and 0.25: linf.
    """
    cases = [([1.0, 1.0], "l2"), ([1.0, 0.01], "l1"), ([1.0] * 5, "linf")]
    for weight, winner in cases:
        a = torch.tensor(weight)
        model = FixedLogits(torch.stack([a, torch.zeros_like(a)]))
        x, y = torch.full((1, len(a)), 0.5), torch.tensor([1])
        sizes: dict[str, Any] = dict(steps=1, step_sizes=(1, 1, 1))
        x_adv = MSD(norms=NORMS, eps=(0.1, 0.2, 0.25), **sizes)(model, x, y)
        moves = {
            "linf": torch.full_like(a, 0.1),
            "l2": 0.2 * a / a.norm(),
            "l1": torch.tensor([0.25, 0.0]),
        }
        assert torch.allclose(x_adv[0] - 0.5, moves[winner], atol=1e-6), winner


def test_images_of_one_batch_choose_for_themselves() -> None:
    """In one step: linf and l2 move all entries, l1 5 % of them."""
    model, x = Wavy(dtype=torch.float32), pictures(24, torch.float32)
    y = predicted(model, x)
    delta = (attack(steps=1)(model, x, y) - x).flatten(1)
    by_l1 = (delta != 0).sum(1) < 30
    assert 0 < by_l1.sum() < 24
    alone = torch.cat([attack(steps=1)(model, x[i : i + 1], y[i : i + 1]) for i in range(24)])
    assert torch.allclose(x + delta.view_as(x), alone, atol=1e-6)


@pytest.mark.parametrize(("norms", "steps"), [(("linf",), 3), (("linf", "l1"), 10), (NORMS, 10)])
def test_cost(norms: tuple[str, ...], steps: int) -> None:
    """A step in m norms: 1 + m forwards and one input-backward an image."""
    model, x = Counting(Wavy(dtype=torch.float32)), pictures(6, torch.float32)
    y = torch.zeros(6, dtype=torch.int64)
    msd = MSD(norms=norms, eps=tuple(EPS[norm] for norm in norms), steps=steps)
    cost = msd.run(model, x, y).cost
    assert cost == Cost(2 * steps, steps) == Cost(model.forwards, model.backwards)
    assert cost.forward_images == 6 * steps * (1 + len(norms))
    assert cost.backward_images == 6 * steps
    split = msd.run(model, x, y, engine=Engine(batch_size=4)).cost
    assert (split.forward_images, split.backward_images) == (
        cost.forward_images,
        cost.backward_images,
    )


def test_nothing_waits_for_the_device() -> None:
    model, x = Wavy(dtype=torch.float32), pictures(4, torch.float32)
    y = torch.zeros(4, dtype=torch.int64)
    with known_values():
        assert waits(lambda: attack(steps=3)(model, x, y)) == []


def test_the_paper_s_step_sizes() -> None:
    """0.003 of 0.03, 0.05 of 0.5 and 1 of 12 at 50 steps; fewer are longer, and none beyond eps."""
    msd = MSD(steps=50)
    assert msd.lengths() == pytest.approx({"linf": 0.1, "l2": 0.1, "l1": 1 / 12})
    msd = MSD(steps=10)
    assert msd.lengths() == pytest.approx({"linf": 0.5, "l2": 0.5, "l1": 5 / 12})
    assert set(MSD(steps=2).lengths().values()) == {1.0}
    assert MSD(norms=("l2", "linf"), step_sizes=[1.5, 1]).lengths() == {"l2": 1.5, "linf": 1}


def test_density_is_that_of_the_l1_step() -> None:
    model, x = Wavy(dtype=torch.float32), pictures(2, torch.float32)
    y = predicted(model, x)
    for density, entries in ((0.0, 1), (0.05, 10), (0.25, 48)):
        x_adv = MSD(norms=("l1",), eps=(0.01,), steps=1, density=density)(model, x, y)
        assert ((x_adv != x).flatten(1).sum(1) == entries).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps`: expected an integer >= 1"),
        ({"step_sizes": (1, 1, 0.0)}, "`step_sizes`: expected a number > 0"),
        ({"step_sizes": (1,)}, "`step_sizes`: expected one length for each norm"),
        ({"density": -0.5}, r"`density`: expected a number in \[0, 1\]"),
        ({"norms": ("l1",), "eps": (1, 2)}, "`eps`: expected one radius for each norm"),
    ],
)
def test_wrong_fields(options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MSD(**options)
