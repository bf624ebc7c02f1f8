"""APGD: its trajectories against a plain loop, results, costs, and what leaves the batch."""

from typing import Any

import pytest
import torch
from textbook_apgd import apgd, of_model
from tiny_attacks import generator as source
from tiny_models import Counting, FixedLogits, Mixed, images, untouched
from torch import Tensor
from wavy import Wavy, pictures, predicted

from roli_fast import ops
from roli_fast.attacks import APGD, APGDT
from roli_fast.compat.original_draws import OriginalAPGD
from roli_fast.engine import Cost
from roli_fast.errors import ArgumentError
from roli_fast.losses import cross_entropy
from roli_fast.norms import NORMS

EPS: dict[str, float] = {"linf": 0.012, "l2": 0.1, "l1": 0.7}
X = pictures(24, torch.float32)
NET = Wavy(dtype=torch.float32)
Y = predicted(NET, X)
WIDE: dict[str, float] = {"linf": 0.08, "l2": 0.6, "l1": 4.0}
SAME = 1e-5
"""Batches of other sizes round differently, and a search may follow."""
LARGE: dict[str, Any] = dict(norm="l1", large_radius=True)


def loss_of(x: Tensor) -> Tensor:
    with torch.no_grad():
        return cross_entropy(NET(x), Y)


@pytest.fixture(params=["linf", "l2", "l1"])
def norm(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_every_iterate_and_the_best_equal_the_plain_loop(norm: Any, steps: int) -> None:
    """In fp64."""
    model, x = Wavy(), pictures(8)
    y = predicted(model, x)
    attack = APGD(norm=norm, eps=WIDE[norm], steps=steps, keep="best")
    model.seen.clear()
    result = attack(model, x, y, source())
    seen = torch.stack(model.seen)
    assert len(seen) == steps + 1
    for i in range(8):
        iterates, best = apgd(of_model(model, y[i]), x[i], seen[0, i], WIDE[norm], norm, steps)
        assert torch.allclose(seen[:, i], torch.stack(iterates), rtol=0, atol=1e-9)
        assert torch.allclose(result[i], best, rtol=0, atol=1e-9)


class TestResults:
    def test_who_is_never_fooled_gets_the_highest_loss(self, norm: Any) -> None:
        common: dict[str, Any] = dict(norm=norm, eps=EPS[norm], steps=12)
        found = APGD(**common).run(NET, X, Y, source())
        best = APGD(**common, keep="best").run(NET, X, Y, source())
        assert found.fooled is not None and best.fooled is None
        robust = ~found.fooled
        assert torch.allclose(found.x_adv[robust], best.x_adv[robust], atol=SAME)
        assert (loss_of(best.x_adv) > loss_of(X)).all()

    def test_a_fooled_sample_gives_its_first_misclassified_iterate(self) -> None:
        """Pixel x, logits (0.5 - x, 0): wrong above 1/2. From 0.375 the first step of 2 eps ends at
        the ball's edge, 0.625; the start itself is right."""
        model = FixedLogits(torch.tensor([[-1.0], [0.0]]), torch.tensor([0.5, 0.0]))
        x, y = torch.full((1, 1), 0.375), torch.tensor([0])
        for compact in (True, False):
            attack = APGD(eps=0.25, steps=4, random_start=False, compact=compact)
            assert attack(model, x, y).item() == 0.625


class TestCompaction:
    @pytest.mark.parametrize("kind", [APGD, APGDT])
    def test_when_all_are_fooled_it_is_over(self, kind: Any) -> None:
        result = kind(eps=0.5, steps=50).run(NET, X, Y, source())
        assert result.fooled is not None and result.fooled.all()
        assert result.cost.forwards < 20
        wrong = kind(steps=50).run(NET, X, (Y + 1) % 6, source())
        assert wrong.cost == Cost(1, 0) and wrong.cost.forward_images == 24
        assert torch.equal(wrong.x_adv, X) and wrong.x_adv is not X


class TestLargeRadius:
    def test_nobody_leaves_the_larger_radii(self) -> None:
        """Their iterates are outside the ball: each stage of 3 steps is 4 passes on all images, and
        starts from the best of the one before."""
        net = Wavy(dtype=torch.float32)
        result = APGD(**LARGE, eps=0.5, steps=10).run(net, X, Y, source())
        assert [len(batch) for batch in net.seen[:9]] == [24] * 9
        assert len(net.seen[-1]) < 24 and len(net.seen) == result.cost.forwards
        stage, after = torch.stack(net.seen[1:5]), net.seen[5]
        losses = torch.stack([loss_of(iterates) for iterates in stage])
        best = stage[losses.argmax(0), torch.arange(24)]
        assert torch.equal(after, ops.l1_project_(best, X, eps=1.0))

    def test_it_ends_in_the_ball(self) -> None:
        eps = torch.linspace(0.2, 2, 24)
        x_adv = APGD(**LARGE, steps=9)(NET, X, Y, source(), eps=eps)
        assert (NORMS["l1"].distance(x_adv, X) <= eps.double()).all()
        assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        *((APGD(norm=norm, eps=1e-5, steps=1), 3, 1) for norm in EPS),
        (APGD(eps=1e-5, steps=7), 9, 7),
        (APGD(eps=1e-5, steps=7, keep="best", random_start=False), 8, 7),
        (APGDT(eps=1e-5, steps=3, targets=4, restarts=2, eot=3), 1 + 8 * 4 * 3, 8 * 3 * 3),
        (APGD(**LARGE, eps=1e-4, steps=10), 1 + 10 + 3, 10),  # three starts
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_cost(attack: APGD, forwards: int, backwards: int) -> None:
    """A tiny radius fools nobody."""
    model = Counting(NET)
    cost = attack.run(model, X, Y, source()).cost
    assert cost == Cost(forwards, backwards) == Cost(model.forwards, model.backwards)
    assert (cost.forward_images, cost.backward_images) == (24 * forwards, 24 * backwards)


class TestDraws:
    def test_l1_starts_are_sparse(self) -> None:
        """Noise far larger than the ball, projected: few entries remain. Uniform would be dense."""
        net = Wavy(dtype=torch.float32)
        APGD(norm="l1", eps=2.0, steps=1, keep="best")(net, X, Y, source())
        changed = (net.seen[0] != X).flatten(1).sum(1)
        assert (changed > 0).all() and (changed < 40).all()
        assert not torch.equal(net.seen[0][0] != X[0], net.seen[0][1] != X[1])

    @pytest.mark.parametrize("large", [False, True])
    def test_the_official_draws_in_l1(self, large: bool) -> None:
        """Those of the second restart follow those of the first. With large radii there are four a
        restart: the start's, and one a stage that is not used; and the authors' code takes x +
        noise for a change of x, and the projected change for a point."""
        net = Wavy(dtype=torch.float32)
        options: dict[str, Any] = dict(norm="l1", eps=0.3, keep="best", large_radius=large)
        OriginalAPGD(**options, steps=3 if large else 1, restarts=2)(net, X, Y)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            noise = [torch.randn(X.shape) for _ in range(5)]
        if large:
            change = ops.l1_project_(X + (X + noise[4]), X, eps=0.9) - X
            assert torch.equal(net.seen[6], ops.l1_project_(change, X, eps=0.9))
        else:
            assert torch.equal(net.seen[2], ops.l1_project_(X + noise[1], X, eps=0.3))


class TestFewClasses:
    @pytest.mark.parametrize(("classes", "notes"), [(2, 2), (3, 2), (5, 1), (10, 0)])
    def test_targets_and_loss_follow_the_classes(self, classes: int, notes: int) -> None:
        net = Wavy(classes, torch.float32)
        y = predicted(net, X)
        result = APGDT(eps=1e-5, steps=1).run(net, X, y, source())
        targets = min(9, classes - 1)
        assert result.cost == Cost(1 + 2 * targets, targets)
        assert len(result.notes) == notes
        if classes < 10:
            assert f"{targets} targets, not 9: there are {classes} classes" in result.notes[-1]
        if classes < 4:
            assert "margin was taken" in result.notes[0]

    def test_one_class_cannot_be_aimed_at(self) -> None:
        with pytest.raises(ArgumentError, match="at least 2 classes, got 1"):
            APGDT()(FixedLogits(torch.ones(1, 2)), torch.rand(1, 2), torch.tensor([0]))


class BreaksDown(Mixed):
    """Its logits are NaN in pass number `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        return super().forward(x) * (torch.nan if self.left == 0 else 1)


def test_nan_on_original_images_is_an_error_and_in_the_search_counts_as_fooled() -> None:
    x, y, model = images(6, 3, 6, 6), torch.tensor([1, 2, 1, 1, 1, 1]), BreaksDown(1)
    message = "`model`: expected numbers as logits.*NaN for 6 of 6"
    with untouched(model), pytest.raises(ArgumentError, match=message):
        APGD()(model, x, y, source())
    result = APGD(eps=1e-5, steps=3).run(BreaksDown(3), x, y, source())
    assert result.fooled is not None and result.fooled.all()
