"""PGD against hand-worked numbers and a plain implementation, and each of its options."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_attacks import generator as source
from tiny_models import Counting, FixedLogits, Mixed, images
from torch import Tensor, nn
from wavy import Wavy, pictures, predicted

from roli_fast.attacks import PGD
from roli_fast.engine import Cost
from roli_fast.errors import ArgumentError
from roli_fast.losses import cross_entropy, kl
from roli_fast.threat import ThreatModel

X = images(8, 3, 6, 6)
LABELS = torch.tensor([0, 3, 1, 2])
WAVY, PICTURES = Wavy(dtype=torch.float32), pictures(24, torch.float32)
SEEN = predicted(WAVY, PICTURES)
HALF = torch.full((1, 1), 0.5)
ZERO = torch.tensor([0])
FROM_X: dict[str, Any] = dict(random_start=False, loss="margin")


def logits_of(x: Tensor) -> Tensor:
    with torch.no_grad():
        return Mixed().eval()(x)


Y = logits_of(X).argmax(1)


def dyadic(*shape: int) -> Tensor:
    """Images on a grid of 1/256: sums with steps of 1/128 and balls of 1/32 are exact."""
    return (images(*shape) * 256).floor() / 256


def plain_pgd(x: Tensor, y: Tensor, eps: float, size: float, steps: int) -> Tensor:
    model, x_adv = Mixed().eval(), x.clone()
    for _ in range(steps):
        x_adv.requires_grad_(True)
        loss = nn.functional.cross_entropy(model(x_adv), y)
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + size * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_equals_a_plain_implementation(steps: int) -> None:
    x = dyadic(4, 3, 6, 6)
    attack = PGD(eps=1 / 32, step_size=1 / 128, steps=steps, random_start=False)
    truth = plain_pgd(x, LABELS, 1 / 32, 1 / 128, steps)
    assert torch.equal(attack(Mixed(), x, LABELS), truth)
    quarter = replace(attack, step_size=None)
    assert torch.equal(quarter(Mixed(), x, LABELS), truth)
    from_threat = replace(quarter, eps=None).under(ThreatModel(eps=1 / 32))
    assert torch.equal(from_threat(Mixed(), x, LABELS), truth)


@pytest.mark.parametrize(
    ("options", "forwards", "backwards"),
    [
        (dict(steps=4), 4, 4),
        (dict(steps=3, keep="best", eot=5), 20, 15),
        (dict(steps=4, loss="kl"), 5, 4),
        (dict(steps=2, eps=1e-5, restarts=3), 9, 6),
        (dict(steps=2, targets="random"), 3, 2),
    ],
    ids=str,
)
def test_passes(options: dict[str, Any], forwards: int, backwards: int) -> None:
    model = Counting(Mixed())
    cost = PGD(**options).run(model, X, Y, source()).cost
    assert cost == Cost(forwards, backwards) == Cost(model.forwards, model.backwards)


class Hill(nn.Module):
    """Loss highest where the first pixel is 1/2; its logits are (-64 (x - 1/2)^2, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        height = -64 * (x[:, 0] - 0.5).square()
        return torch.stack([height, torch.zeros_like(height)], dim=1)


def test_the_best_iterate_is_kept_image_by_image() -> None:
    """Image 0 jumps to and fro over the top, best at the start; image 1 climbs, best at the end.

    The batch's summed loss is highest at the end, where image 0 is at its worst.
    """
    x = torch.tensor([[0.484375, 0.0], [0.25, 0.0]])
    y = torch.tensor([1, 1])
    common: dict[str, Any] = dict(eps=0.25, step_size=0.0625, steps=3, random_start=False)
    assert PGD(**common)(Hill(), x, y)[:, 0].tolist() == [0.546875, 0.4375]
    assert PGD(**common, keep="best")(Hill(), x, y)[:, 0].tolist() == [0.484375, 0.4375]


@pytest.mark.parametrize("calls", [0, 1])
def test_a_loss_that_is_nan_does_not_hide_the_rest(calls: int) -> None:
    class Gap(nn.Module):
        """Logits (4 x, 0); NaN once, in the second pass, without a NaN in the gradient."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            z = 4 * x[:, 0] + torch.tensor([float("nan") if self.calls == 2 else 0.0, 0.0])
            return torch.stack([z, torch.zeros_like(z)], dim=1)

    x, y, model = torch.full((2, 1), 0.5), torch.tensor([1, 1]), Gap()
    model.calls = calls  # 1: in the very first loss of image 0
    attack = PGD(eps=0.25, step_size=0.0625, steps=3, random_start=False, keep="best")
    assert attack(model, x, y)[:, 0].tolist() == [0.625, 0.6875]


class TestMomentum:
    def test_by_hand(self) -> None:
        """Gradients (4, -4), then (1, 9): unit sums (.5, -.5) and (.1, .9). With decay 1 the second
        velocity is (.6, .4), with decay 2 it is (1.1, -.1): the signs differ."""

        class Turning(nn.Module):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                weight = torch.tensor([[4.0, -4.0], [1.0, 9.0]][self.calls - 1])
                return torch.stack([-(x * weight).sum(1), torch.zeros(len(x))], dim=1)

        def after(momentum: float) -> list[float]:
            attack = PGD(eps=0.25, step_size=0.0625, steps=2, momentum=momentum, **FROM_X)
            return attack(Turning(), torch.full((1, 2), 0.5), ZERO)[0].tolist()

        assert after(0.0) == after(1.0) == [0.625, 0.5]
        assert after(2.0) == [0.625, 0.375]

    def test_a_zero_gradient_stays(self) -> None:
        model, x = FixedLogits(torch.zeros(2, 3)), torch.full((1, 3), 0.5)
        assert torch.equal(PGD(eps=0.1, random_start=False, momentum=1.0)(model, x, ZERO), x)


class TestRestarts:
    def test_the_result_is_the_best_restart(self) -> None:
        """eps so small that nothing is fooled: the highest final loss of the three."""
        small: dict[str, Any] = dict(eps=1e-3, step_size=5e-4, steps=1)
        together = PGD(**small, restarts=3).run(Mixed(), X, Y, source())
        seeds = torch.randint(2**63 - 1, (3,), generator=source()).tolist()
        single = [PGD(**small)(Mixed(), X, Y, source(seed)) for seed in seeds]
        losses = torch.stack([cross_entropy(logits_of(x), Y) for x in single])
        assert together.fooled is not None and not together.fooled.any()
        for i, best in enumerate(losses.argmax(0).tolist()):
            assert torch.equal(together.x_adv[i], single[best][i])
        assert len(losses.argmax(0).unique()) > 1

    def test_fooled_samples_leave_the_restarts_to_come(self) -> None:
        result = PGD(eps=0.5, step_size=0.25, steps=5, restarts=4).run(Mixed(), X, Y, source())
        assert result.fooled is not None and result.fooled.all()
        assert result.cost == Cost(6, 5)

    def test_a_restart_that_fools_wins_over_one_of_higher_loss(self) -> None:
        """After the first search 100 classes are about as likely, the label by a hair (loss 4.6);
        after the second two are, and the other one is ahead (loss 0.74)."""

        class Staged(nn.Module):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                logits = torch.zeros(len(x), 100)
                logits[:, 0] = 0.01
                if self.calls == 4:
                    logits -= 50
                    logits[:, :2] = torch.tensor([0.0, 0.1])
                return logits + 0 * x.sum()

        result = PGD(eps=0.1, steps=1, restarts=2).run(Staged(), HALF, ZERO, source())
        seeds = torch.randint(2**63 - 1, (2,), generator=source()).tolist()
        second = PGD(eps=0.1, steps=1)(Staged(), HALF, ZERO, source(seeds[1]))
        assert result.fooled is not None and result.fooled.all()
        assert torch.equal(result.x_adv, second)


class TestTargets:
    def test_the_least_likely_class_gains(self) -> None:
        target = logits_of(X).argmin(1)
        x_adv = PGD(eps=1 / 8, steps=4, targets="least_likely")(Mixed(), X, Y, source())
        before, after = cross_entropy(logits_of(X), target), cross_entropy(logits_of(x_adv), target)
        assert (after < before).all()

    def test_wrong_targets(self) -> None:
        for attack, message in (
            (PGD(targets="random"), "`target`: expected None"),
            (PGD(loss="kl"), "`loss`: expected a loss with a targeted form"),
        ):
            with pytest.raises(ArgumentError, match=message):
                attack(Mixed(), X, Y, source(), target=(Y + 1) % 4)


def test_kl_rises_from_the_clean_logits() -> None:
    start = PGD(eps=1 / 8, step_size=1e-12, steps=1)(Mixed(), X, Y, source())
    found = PGD(eps=1 / 8, steps=4, loss="kl")(Mixed(), X, Y, source())
    far, near = (kl(logits_of(x), logits_of(X)) for x in (found, start))
    assert (far > near).all()


def test_eot_averages_gradients() -> None:
    """Slopes 4 and -6 in turn: their mean goes down, the first alone goes up."""

    class Drawing(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            slope = 4.0 if self.calls % 2 else -6.0
            return torch.cat([-slope * x, torch.zeros_like(x)], dim=1)

    def after(eot: int) -> float:
        attack = PGD(eps=0.25, step_size=0.125, steps=1, eot=eot, **FROM_X)
        return attack(Drawing(), HALF, ZERO).item()

    assert (after(1), after(2)) == (0.625, 0.375)


class TestUntilFooled:
    """keep="adversarial"."""

    COMMON: dict[str, Any] = dict(eps=0.012, step_size=0.003, keep="adversarial")

    def test_by_hand(self) -> None:
        """Pixel x, logits (0.5 - x, 0): wrong above 1/2. Steps of 1/16 from 0.25, 0.4375, 0.5625:
        the first never gets there, the second by two steps, the third is wrong as it is."""
        model = FixedLogits(torch.tensor([[-1.0], [0.0]]), torch.tensor([0.5, 0.0]))
        x, y = torch.tensor([[0.25], [0.4375], [0.5625]]), torch.tensor([0, 0, 0])
        attack = PGD(eps=0.1875, step_size=0.0625, steps=3, random_start=False, keep="adversarial")
        for compact in (True, False):
            result = replace(attack, compact=compact).run(model, x, y)
            assert result.x_adv[:, 0].tolist() == [0.4375, 0.5625, 0.5625]
            assert result.fooled is not None and result.fooled.tolist() == [False, True, True]
            assert result.cost == Cost(4, 3)
            images = (3 + 2 + 2 + 1, 3 + 2 + 2) if compact else (12, 9)
            assert (result.cost.forward_images, result.cost.backward_images) == images

    def test_it_fools_whatever_the_last_iterate_fools(self) -> None:
        last = replace(PGD(**self.COMMON), keep="last")(WAVY, PICTURES, SEEN, source())
        found = PGD(**self.COMMON).run(WAVY, PICTURES, SEEN, source())
        by_last = predicted(WAVY, last) != SEEN
        assert found.fooled is not None and (found.fooled | ~by_last).all()
        assert torch.allclose(found.x_adv[~found.fooled], last[~found.fooled], atol=1e-5)

    def test_a_target_is_reached_or_not(self) -> None:
        target = (SEEN + 1) % 6
        attack = PGD(eps=0.03, step_size=0.005, keep="adversarial")
        result = attack.run(WAVY, PICTURES, SEEN, source(), target=target)
        assert result.fooled is not None and 1 < result.fooled.sum() < 24
        assert torch.equal(result.fooled, predicted(WAVY, result.x_adv) == target)
