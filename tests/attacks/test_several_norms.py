"""Attacks in several norms: MultiAPGD is each norm's APGD alone, in one batch; MSD equals a plain
version of its paper, and its choice of a norm is worked by hand."""

from typing import Any

import pytest
import torch
from given_norms import Passes
from textbook_apgd import of_model, project, sparse
from tiny_models import Counting, FixedLogits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from waits import waits
from wavy import OneByOne, Wavy, pictures, predicted

from roli_fast.attacks import APGD, MSD, MultiAPGD
from roli_fast.engine import Cost, Engine
from roli_fast.errors import ArgumentError
from roli_fast.threat import ThreatModel, known_values

EPS: dict[str, float] = {"linf": 0.012, "l2": 0.1, "l1": 0.48}
COUNT = 24
X = pictures(COUNT, torch.float32)
NET = Wavy(dtype=torch.float32)
Y = predicted(NET, X)
Y[::6] = (Y[::6] + 1) % 6  # wrong to begin with


def multi(*norms: str, **options: Any) -> Any:
    names = norms or tuple(EPS)
    return MultiAPGD(norms=names, eps=tuple(EPS[name] for name in names), **options)


def alone(norm: str, steps: int, **more: Any) -> APGD:
    more = {"density": 0.05} | more
    return APGD(norm=norm, eps=EPS[norm], steps=steps, keep="best", random_start=False, **more)


@pytest.mark.parametrize(
    ("steps", "l1_steps", "size", "more"),
    [
        (10, None, None, {}),
        (5, 15, 7, {"rho": 0.5, "density": 0.3}),
        (7, 3, COUNT, {}),
        (1, None, 7, {}),
    ],
)
def test_each_norm_is_as_alone_to_the_last_bit(
    steps: int, l1_steps: int | None, size: int | None, more: dict[str, float]
) -> None:
    """The logits of OneByOne do not depend on the batch, as a plain model's may."""
    model, engine = OneByOne(NET), Engine(batch_size=size)
    attack = multi(steps=steps, l1_steps=l1_steps, **more)
    found = attack.run(model, X, Y, engine=engine).found
    assert list(found) == ["linf", "l2", "l1"]
    for norm, result in found.items():
        own = (l1_steps or steps) if norm == "l1" else steps
        truth = alone(norm, own, **more).run(model, X, Y, engine=engine).x_adv
        assert torch.equal(result.x_adv, truth) and not torch.equal(truth, X)
        with torch.no_grad():
            logits = model(truth)
            loss = cross_entropy(logits, Y, reduction="none")
        assert torch.allclose(result.loss, loss.double(), rtol=1e-6)


def test_robust_means_right_on_the_way_too() -> None:
    """One pixel at 1/2, label 0. Below 0.7 three rivals are 0.1 behind: right, loss 1.31. Above
    only one is left, ahead by 0.1: wrong, loss 0.74. The first step ends at 0.75, so the best
    iterate is right and the image is not robust."""

    class Cliff(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            near = -0.1 + 0.01 * (x - 0.5)
            rival = torch.where(x > 0.7, 0.1 + 0 * x, near)
            others = torch.where(x > 0.7, -10.0 + 0 * x, near)
            return torch.cat([0 * x, rival, others, others], dim=1)

    x, y = torch.full((1, 1), 0.5), torch.tensor([0])
    for eps, robust in ((0.25, False), (0.15, True)):
        result: Any = MultiAPGD(norms=("linf",), eps=(eps,)).run(Cliff(), x, y)
        found = result.found["linf"]
        assert predicted(Cliff(), found.x_adv).item() == 0
        assert found.loss.item() == pytest.approx(1.31, abs=0.01)
        assert found.robust.item() is robust


class TestCost:
    @pytest.mark.parametrize(
        ("norms", "forwards", "backwards"),
        [
            (("linf",), 11, 10),
            (("linf", "l2", "l1"), 31, 28),
        ],
    )
    def test_ten_steps_an_image(
        self, norms: tuple[str, ...], forwards: int, backwards: int
    ) -> None:
        """RAMP and E-AT, MAX: the published numbers of spec section 9, the clean pass shared; all
        norms in one call of the model, if it is not split."""
        for engine in (None, Engine(batch_size=10)):
            model = Passes(NET)
            cost = multi(*norms).run(model, X, Y, engine=engine).cost
            images = (cost.forward_images, cost.backward_images)
            assert images == (COUNT * forwards, COUNT * backwards)
            assert images == (model.forwards, model.to_input)
            assert engine or (cost.forwards, cost.backwards) == (11, 10)

    @pytest.mark.parametrize("attack", [multi(steps=5, l1_steps=15), multi(steps=5, l1_steps=1)])
    def test_other_steps_in_l1(self, attack: MultiAPGD) -> None:
        """1 + 2 * 5 + n forwards and 1 + 2 * 4 + (n - 1) input-backwards an image, in two loops."""
        model, steps = Counting(NET), attack.l1_steps or 0
        cost = attack.run(model, X, Y).cost
        assert cost.forward_images == COUNT * (11 + steps)
        assert cost.backward_images == COUNT * (9 + steps - 1)
        assert (model.forwards, model.backwards) == (cost.forwards, cost.backwards)
        assert (cost.forwards, cost.backwards) == (6 + steps, 5 + steps - 1)

    @pytest.mark.parametrize(
        "attack", [multi(steps=3), multi(steps=3, l1_steps=4), MSD(steps=3)], ids=str
    )
    def test_nothing_waits_for_the_device(self, attack: Any) -> None:
        with known_values():
            assert waits(lambda: attack(NET, X, Y)) == []


class TestWorst:
    def test_each_image_gets_the_norm_of_highest_loss(self) -> None:
        result = multi().run(NET, X, Y)
        losses = torch.stack([each.loss for each in result.found.values()])
        images = torch.stack([each.x_adv for each in result.found.values()])
        chosen = losses.argmax(0)
        assert len(chosen.unique()) > 1 and result.fooled is None
        assert torch.equal(result.x_adv, images[chosen, torch.arange(COUNT)])

    def test_worked_by_hand(self) -> None:
        """Two pixels, logits (a . x, 0), label 1: what counts is by how much a . x rises. Sample 1,
        a = (1, 1): linf 0.1 gains 0.2, l2 0.2 gains 0.283, l1 0.25 gains 0.25; with a = (1, 0)
        they gain 0.1, 0.2 and 0.25."""
        x, y = torch.full((1, 2), 0.5), torch.tensor([1])
        norms, eps = ("linf", "l2", "l1"), (0.1, 0.2, 0.25)
        for weight, gains, winner in (
            ([1.0, 1.0], (0.2, 0.2 * 2**0.5, 0.25), "l2"),
            ([1.0, 0.0], (0.1, 0.2, 0.25), "l1"),
        ):
            model = FixedLogits(torch.tensor([weight, [0.0, 0.0]]))
            result: Any = MultiAPGD(norms=norms, eps=eps, steps=5).run(model, x, y)
            for norm, gain in zip(norms, gains, strict=True):
                moved = (result.found[norm].x_adv - x)[0] @ torch.tensor(weight)
                assert moved.item() == pytest.approx(gain, abs=1e-6)
            assert torch.equal(result.x_adv, result.found[winner].x_adv)


class TestNorms:
    def test_only(self) -> None:
        assert multi(steps=4).only("l1", "linf") == multi("l1", "linf", steps=4)
        message = r"`norms`: expected norms that the attack has \(linf, l1\), got 'l2', which has"
        with pytest.raises(ArgumentError, match=message):
            multi("linf", "l1").only("linf", "l2")

    def test_under_a_threat_of_several_norms(self) -> None:
        threat = ThreatModel("linf", 0.1, (0.0, 2.0), ("l1", "l2"), (3.0, 0.7))
        nothing = MultiAPGD(norms=None, eps=None, bounds=None)
        full = MultiAPGD(norms=("linf", "l1", "l2"), eps=(0.1, 3.0, 0.7), bounds=(0.0, 2.0))
        assert nothing.under(threat) == full
        lists: Any = dict(norms=["l2", "linf"], eps=None)  # as in YAML
        some = MultiAPGD(**lists).under(threat)
        assert some == MultiAPGD(norms=("l2", "linf"), eps=(0.7, 0.1))


MSD_EPS: dict[str, float] = {"linf": 0.09, "l2": 0.88, "l1": 5.7}
NAMES = tuple(MSD_EPS)


def msd(**options: Any) -> MSD:
    return MSD(norms=NAMES, eps=tuple(MSD_EPS.values()), **options)


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
        for norm, eps in MSD_EPS.items():
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


@pytest.mark.parametrize(("steps", "given"), [(1, False), (4, True), (12, False)])
def test_it_equals_a_plain_version(steps: int, given: bool) -> None:
    model, x = Wavy(), pictures(8)
    y = predicted(model, x)
    sizes = {"linf": min(1, 5 / steps), "l2": min(1, 5 / steps), "l1": min(1, 50 / 12 / steps)}
    options: dict[str, Any] = {}
    if given:
        sizes = {"linf": 0.4, "l2": 0.38, "l1": 0.4}
        options = {"step_sizes": tuple(sizes.values())}
    found = msd(steps=steps, **options)(model, x, y)
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
        x_adv = MSD(norms=NAMES, eps=(0.1, 0.2, 0.25), **sizes)(model, x, y)
        moves = {
            "linf": torch.full_like(a, 0.1),
            "l2": 0.2 * a / a.norm(),
            "l1": torch.tensor([0.25, 0.0]),
        }
        assert torch.allclose(x_adv[0] - 0.5, moves[winner], atol=1e-6), winner


@pytest.mark.parametrize(("norms", "steps"), [(("linf",), 3), (NAMES, 10)])
def test_cost(norms: tuple[str, ...], steps: int) -> None:
    """A step in m norms: 1 + m forwards and one input-backward an image."""
    model, x = Counting(Wavy(dtype=torch.float32)), pictures(6, torch.float32)
    y = torch.zeros(6, dtype=torch.int64)
    attack = MSD(norms=norms, eps=tuple(MSD_EPS[norm] for norm in norms), steps=steps)
    cost = attack.run(model, x, y).cost
    assert cost == Cost(2 * steps, steps) == Cost(model.forwards, model.backwards)
    assert cost.forward_images == 6 * steps * (1 + len(norms))
    assert cost.backward_images == 6 * steps
    split = attack.run(model, x, y, engine=Engine(batch_size=4)).cost
    assert (split.forward_images, split.backward_images) == (
        cost.forward_images,
        cost.backward_images,
    )


def test_the_paper_s_step_sizes() -> None:
    """0.003 of 0.03, 0.05 of 0.5 and 1 of 12 at 50 steps; fewer are longer, and none beyond eps."""
    assert MSD(steps=50).lengths() == pytest.approx({"linf": 0.1, "l2": 0.1, "l1": 1 / 12})
    assert MSD(steps=10).lengths() == pytest.approx({"linf": 0.5, "l2": 0.5, "l1": 5 / 12})
    assert set(MSD(steps=2).lengths().values()) == {1.0}
    assert MSD(norms=("l2", "linf"), step_sizes=[1.5, 1]).lengths() == {"l2": 1.5, "linf": 1}


def test_density_is_that_of_the_l1_step() -> None:
    model, x = Wavy(dtype=torch.float32), pictures(2, torch.float32)
    y = predicted(model, x)
    for density, entries in ((0.0, 1), (0.05, 10), (0.25, 48)):
        x_adv = MSD(norms=("l1",), eps=(0.01,), steps=1, density=density)(model, x, y)
        assert ((x_adv != x).flatten(1).sum(1) == entries).all()
