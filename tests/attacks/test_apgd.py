"""APGD: its trajectories against a plain loop, results, costs, and what leaves the batch."""

from typing import Any

import pytest
import torch
from textbook_apgd import apgd, of_model
from tiny_models import Counting, FixedLogits, Mixed, images, untouched
from torch import Tensor, nn
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


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss_of(x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return cross_entropy(NET(x), y)


@pytest.fixture(params=["linf", "l2", "l1"])
def norm(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[APGD, APGDT], ids=["apgd", "apgd-t"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


class TestTextbook:
    """In fp64."""

    @pytest.mark.parametrize("steps", [1, 5, 40])
    def test_every_iterate_and_the_best_equal_the_plain_loop(self, norm: Any, steps: int) -> None:
        model, x = Wavy(), pictures(8)
        y = predicted(model, x)
        attack = APGD(norm=norm, eps=WIDE[norm], steps=steps, keep="best")
        model.seen.clear()
        result = attack(model, x, y, torch.Generator().manual_seed(0))
        seen = torch.stack(model.seen)
        assert len(seen) == steps + 1
        for i in range(8):
            iterates, best = apgd(of_model(model, y[i]), x[i], seen[0, i], WIDE[norm], norm, steps)
            assert torch.allclose(seen[:, i], torch.stack(iterates), rtol=0, atol=1e-9)
            assert torch.allclose(result[i], best, rtol=0, atol=1e-9)

    def test_the_test_sees_the_schedule(self, norm: Any) -> None:
        """Without a look back nothing would be halved: most samples must depend on it."""
        model, x = Wavy(), pictures(8)
        y = predicted(model, x)
        plain = APGD(norm=norm, eps=WIDE[norm], steps=40, keep="best", compact=False)
        runs = []
        for rho in (0.75, 1e-9):
            model.seen.clear()
            density = 0.2 if rho == 0.75 else 0.3
            changed = APGD(**{**plain.__dict__, "rho": rho, "density": density})
            changed(model, x, y, torch.Generator().manual_seed(0))
            runs.append(torch.stack(model.seen))
        differs = (runs[0] - runs[1]).abs().flatten(2).amax(2) > 1e-6  # (steps + 1, B)
        assert differs[-1].sum() >= 6


class TestResults:
    def test_who_is_never_fooled_gets_the_highest_loss(self, norm: Any) -> None:
        common: dict[str, Any] = dict(norm=norm, eps=EPS[norm], steps=12)
        found = APGD(**common).run(NET, X, Y, source())
        best = APGD(**common, keep="best").run(NET, X, Y, source())
        assert found.fooled is not None and best.fooled is None
        robust = ~found.fooled
        assert torch.allclose(found.x_adv[robust], best.x_adv[robust], atol=SAME)
        assert (loss_of(best.x_adv, Y) > loss_of(X, Y)).all()

    def test_a_fooled_sample_gives_its_first_misclassified_iterate(self) -> None:
        """Pixel x, logits (0.5 - x, 0): wrong above 1/2. From 0.375 the first step of 2 eps ends at
        the ball's edge, 0.625; the start itself is right."""
        model = FixedLogits(torch.tensor([[-1.0], [0.0]]), torch.tensor([0.5, 0.0]))
        x, y = torch.full((1, 1), 0.375), torch.tensor([0])
        for compact in (True, False):
            attack = APGD(eps=0.25, steps=4, random_start=False, compact=compact)
            assert attack(model, x, y).item() == 0.625

    @pytest.mark.parametrize("keep", ["adversarial", "best"])
    def test_the_best_of_the_restarts_counts(self, keep: Any) -> None:
        tiny: dict[str, Any] = dict(eps=1e-4, steps=1, keep=keep)
        together = APGD(**tiny, restarts=3)(NET, X, Y, source())
        seeds = torch.randint(2**63 - 1, (3,), generator=source()).tolist()
        single = [APGD(**tiny)(NET, X, Y, source(seed)) for seed in seeds]
        losses = torch.stack([loss_of(x, Y) for x in (together, *single)])
        assert torch.allclose(losses[0], losses[1:].amax(0), atol=1e-6)

    def test_no_random_start_begins_at_the_image(self) -> None:
        net = Wavy(dtype=torch.float32)
        APGD(random_start=False, keep="best", steps=2)(net, X, Y)
        assert torch.equal(net.seen[0], X) and len(net.seen) == 3


class TestCompaction:
    @pytest.mark.parametrize("more", [{}, {"large_radius": True}], ids=str)
    def test_flags_and_images_are_the_same_without_it(
        self, kind: Any, norm: Any, more: dict[str, bool]
    ) -> None:
        norm = "l1" if more else norm
        common: dict[str, Any] = dict(norm=norm, eps=EPS[norm], steps=15, restarts=2, **more)
        with_it = kind(**common).run(NET, X, Y, source())
        without = kind(**common, compact=False).run(NET, X, Y, source())
        assert with_it.fooled is not None and 3 < with_it.fooled.sum() < 24
        assert torch.equal(with_it.fooled, without.fooled)
        fooled = with_it.fooled
        assert torch.allclose(with_it.x_adv[fooled], without.x_adv[fooled], atol=SAME)
        assert with_it.cost.forward_images < without.cost.forward_images

    def test_nobody_leaves_the_larger_radii_of_large_radius(self) -> None:
        """Their iterates are outside the ball: each stage of 3 steps is 4 passes on all images."""
        net = Wavy(dtype=torch.float32)
        attack = APGD(norm="l1", eps=EPS["l1"], steps=10, large_radius=True)
        result = attack.run(net, X, Y, source())
        assert [len(batch) for batch in net.seen[:9]] == [24] * 9
        assert len(net.seen[-1]) < 24 and len(net.seen) == result.cost.forwards

    def test_a_stage_starts_from_the_best_of_the_one_before(self) -> None:
        net = Wavy(dtype=torch.float32)
        APGD(norm="l1", eps=0.5, steps=10, large_radius=True)(net, X, Y, source())
        stage, after = torch.stack(net.seen[1:5]), net.seen[5]
        losses = torch.stack([loss_of(iterates, Y) for iterates in stage])
        best = stage[losses.argmax(0), torch.arange(24)]
        assert torch.equal(after, ops.l1_project_(best, X, eps=1.0))

    def test_when_all_are_fooled_it_is_over(self, kind: Any) -> None:
        result = kind(eps=0.5, steps=50).run(NET, X, Y, source())
        assert result.fooled is not None and result.fooled.all()
        assert result.cost.forwards < 20

    def test_who_is_wrong_to_begin_with_costs_one_forward(self, kind: Any) -> None:
        result = kind(steps=50).run(NET, X, (Y + 1) % 6, source())
        assert result.cost == Cost(1, 0) and result.cost.forward_images == 24
        assert torch.equal(result.x_adv, X) and result.x_adv is not X


class TestCost:
    @pytest.mark.parametrize("steps", [1, 7])
    def test_one_search(self, norm: Any, steps: int) -> None:
        """A tiny radius fools nobody."""
        model = Counting(NET)
        result = APGD(norm=norm, eps=1e-5, steps=steps).run(model, X, Y, source())
        assert result.cost == Cost(steps + 2, steps) == Cost(model.forwards, model.backwards)
        assert result.cost.forward_images == 24 * (steps + 2)
        assert result.cost.backward_images == 24 * steps

    def test_the_attack_for_training(self) -> None:
        result = APGD(eps=1e-5, steps=7, keep="best", random_start=False).run(NET, X, Y)
        assert result.cost == Cost(8, 7)

    def test_targets_restarts_and_eot(self) -> None:
        model = Counting(NET)
        result = APGDT(eps=1e-5, steps=3, targets=4, restarts=2, eot=3).run(model, X, Y, source())
        assert result.cost == Cost(1 + 8 * 4 * 3, 8 * 3 * 3)
        assert result.cost == Cost(model.forwards, model.backwards)

    def test_large_radius_has_three_starts(self) -> None:
        attack = APGD(norm="l1", eps=1e-4, steps=10, large_radius=True)
        assert attack.run(NET, X, Y, source()).cost == Cost(1 + 10 + 3, 10)


class TestDraws:
    def test_l1_starts_are_sparse(self) -> None:
        """Noise far larger than the ball, projected: few entries remain. Uniform would be dense."""
        net = Wavy(dtype=torch.float32)
        APGD(norm="l1", eps=2.0, steps=1, keep="best")(net, X, Y, source())
        changed = (net.seen[0] != X).flatten(1).sum(1)
        assert (changed > 0).all() and (changed < 40).all()
        assert not torch.equal(net.seen[0][0] != X[0], net.seen[0][1] != X[1])

    def test_official_starts(self, norm: Any) -> None:
        """As the authors' code draws from the global generator after `torch.manual_seed(seed)`."""
        net = Wavy(dtype=torch.float32)
        before = torch.get_rng_state()
        OriginalAPGD(norm=norm, eps=0.3, steps=1, keep="best", seed=7)(net, X, Y)
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            noise = 2 * torch.rand(X.shape) - 1 if norm == "linf" else torch.randn(X.shape)
        flat = noise.flatten(1)
        if norm == "l1":
            delta = (net.seen[0] - X).flatten(1)
            kept = delta.abs() > 1e-4
            assert kept.any(1).all() and (delta[kept] * flat[kept] > 0).all()
            assert (delta.abs().sum(1) - 0.3).abs().max() < 1e-4
            return
        length = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
        truth = (X + 0.3 * noise / length.view(-1, 1, 1, 1)).clamp(0, 1)
        assert torch.allclose(net.seen[0], truth, atol=1e-6)

    def test_official_draws_of_the_second_restart_follow_those_of_the_first(self) -> None:
        net = Wavy(dtype=torch.float32)
        attack = OriginalAPGD(norm="l1", eps=0.3, steps=1, restarts=2, keep="best")
        attack(net, X, Y)
        noise = self.official_noise(2)
        start = ops.l1_project_(X + noise, X, eps=0.3)
        assert torch.equal(net.seen[2], start) and not torch.equal(net.seen[0], start)

    def test_official_draws_with_large_radius(self) -> None:
        """Four a restart: the start's, and one a stage that is not used. The authors' code takes
        x + noise for a change of x, and the projected change for a point."""
        net = Wavy(dtype=torch.float32)
        options: dict[str, Any] = dict(norm="l1", eps=0.3, keep="best", large_radius=True)
        OriginalAPGD(**options, steps=3, restarts=2)(net, X, Y)
        change = ops.l1_project_(X + (X + self.official_noise(5)), X, eps=0.9) - X
        start = ops.l1_project_(change, X, eps=0.9)
        assert torch.equal(net.seen[6], start)

    def official_noise(self, draw: int) -> Tensor:
        """The n-th draw after `torch.manual_seed(0)`."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return [torch.randn(X.shape) for _ in range(draw)][-1]


class TestRadii:
    def test_large_radius_ends_in_the_ball(self) -> None:
        eps = torch.linspace(0.2, 2, 24)
        attack = APGD(norm="l1", steps=9, large_radius=True)
        x_adv = attack(NET, X, Y, source(), eps=eps)
        assert (NORMS["l1"].distance(x_adv, X) <= eps.double()).all()
        assert x_adv.min() >= 0 and x_adv.max() <= 1

    def test_images_in_other_bounds(self, norm: Any) -> None:
        class Scaled(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return NET(x / 256)

        attack: Any = APGD(norm=norm, eps=EPS[norm] * 256, steps=8, bounds=(0.0, 256.0))
        scaled = attack.run(Scaled(), X * 256, Y, source())
        plain = APGD(norm=norm, eps=EPS[norm], steps=8).run(NET, X, Y, source())
        assert torch.equal(scaled.fooled, plain.fooled)


class TestFewClasses:
    @pytest.mark.parametrize(("classes", "notes"), [(2, 2), (3, 2), (4, 1), (5, 1), (10, 0)])
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


class Failing(Mixed):
    """In pass number `at` it raises, or returns NaN."""

    def __init__(self, at: int, nan: bool = False) -> None:
        super().__init__()
        self.left, self.nan = at, nan

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0 and not self.nan:
            raise RuntimeError("boom")
        logits = super().forward(x)
        return logits * torch.nan if self.left == 0 else logits


class TestBadInput:
    X = images(6, 3, 6, 6)
    Y = torch.tensor([1, 2, 1, 1, 1, 1])

    def test_nan_on_original_images_is_an_error(self, kind: Any) -> None:
        model = Failing(1, nan=True)
        message = "`model`: expected numbers as logits.*NaN for 6 of 6"
        with untouched(model), pytest.raises(ArgumentError, match=message):
            kind()(model, self.X, self.Y, source())

    def test_nan_in_the_search_counts_as_fooled_like_in_the_evaluation(self) -> None:
        result = APGD(eps=1e-5, steps=3).run(Failing(3, nan=True), self.X, self.Y, source())
        assert result.fooled is not None and result.fooled.all()
