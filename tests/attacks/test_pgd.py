"""PGD against hand-worked numbers and a plain implementation."""

import math
from typing import Any

import pytest
import torch
from tiny_models import Counting, FixedLogits, Mixed, images
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roli_fast.attacks import PGD
from roli_fast.engine import Cost
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.threat import ThreatModel

Y = torch.tensor([0, 3, 1, 2])


def dyadic(*shape: int) -> Tensor:
    """Images on a grid of 1/256: sums with steps of 1/128 and balls of 1/32 are exact."""
    return (images(*shape) * 256).floor() / 256


def plain_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, size: float, steps: int
) -> Tensor:
    x_adv = x.clone()
    for _ in range(steps):
        x_adv.requires_grad_(True)
        loss = cross_entropy(model(x_adv), y)
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + size * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_equals_a_plain_implementation_step_by_step(steps: int) -> None:
    x = dyadic(4, 3, 6, 6)
    attack = PGD(eps=1 / 32, step_size=1 / 128, steps=steps, random_start=False)
    truth = plain_pgd(Mixed().eval(), x, Y, 1 / 32, 1 / 128, steps)
    assert torch.equal(attack(Mixed(), x, Y), truth)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize(("keep", "extra"), [("last", 0), ("best", 1)])
def test_passes(steps: int, random_start: bool, keep: Any, extra: int) -> None:
    model = Counting(Mixed())
    result = PGD(steps=steps, random_start=random_start, keep=keep).run(
        model, images(4, 3, 6, 6), Y
    )
    assert (model.forwards, model.backwards) == (steps + extra, steps)
    assert result.cost == Cost(steps + extra, steps)


@pytest.mark.parametrize(("eps", "step_size"), [(1 / 32, 1 / 128), (3 / 64, 1 / 32)])
def test_a_linear_model_is_at_its_optimum_in_ceil_eps_over_step(
    eps: float, step_size: float
) -> None:
    """With logits (w x, 0) and label 0 the worst image is clip(x - eps sign(w))."""
    weight = torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0], [0.0] * 5])
    x = torch.tensor([[0.5, 0.25, 0.0, 1.0, 0.125]])
    optimum = (x - eps * weight[0].sign()).clamp(0, 1)
    enough = math.ceil(eps / step_size)

    def after(steps: int) -> Tensor:
        attack = PGD(eps=eps, step_size=step_size, steps=steps, random_start=False)
        return attack(FixedLogits(weight), x, torch.tensor([0]))

    assert torch.equal(after(enough), optimum) and torch.equal(after(enough + 2), optimum)
    assert not torch.equal(after(enough - 1) if enough > 1 else x, optimum)


@pytest.mark.parametrize("eps", [1 / 255, 4 / 255, 8 / 255, 0.1])
def test_a_linear_model_from_a_random_start(eps: float) -> None:
    """2 eps / step_size steps cross the whole ball."""
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    x = images(8, 2)
    x_adv = PGD(eps=eps, step_size=eps / 4, steps=9)(
        FixedLogits(weight), x, torch.zeros(8, dtype=torch.long)
    )
    optimum = (x.double() - eps * weight[0].sign()).clamp(0, 1)
    assert (x_adv.double() - optimum).abs().max() < 1e-7


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


def test_the_best_is_never_below_any_iterate() -> None:
    model = Mixed().eval()
    x, y = images(16, 3, 6, 6), torch.arange(16) % 4
    common: dict[str, Any] = dict(eps=0.3, step_size=0.3)  # coarse steps overshoot

    def losses(x_adv: Tensor) -> Tensor:
        with torch.no_grad():
            return cross_entropy(model(x_adv), y, reduction="none")

    def attacked(steps: int, keep: Any) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return losses(PGD(**common, steps=steps, keep=keep)(model, x, y, generator))

    best = attacked(6, "best")
    iterates = torch.stack([attacked(steps, "last") for steps in range(1, 7)])
    assert (best >= iterates.amax(0) - 1e-6).all()
    assert (best > iterates[-1] + 1e-6).any()  # the last is not the best for some image


def test_a_loss_that_is_nan_at_first_does_not_hide_the_rest() -> None:
    class Gap(nn.Module):
        """Logits (4 x, 0), NaN below 0.52 without a NaN in the gradient of the other images."""

        def forward(self, x: Tensor) -> Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            z = 4 * x[:, 0] + torch.tensor([float("nan") if self.calls == 2 else 0.0, 0.0])
            return torch.stack([z, torch.zeros_like(z)], dim=1)

    x, y = torch.full((2, 1), 0.5), torch.tensor([1, 1])
    attack = PGD(eps=0.25, step_size=0.0625, steps=3, random_start=False, keep="best")
    assert attack(Gap(), x, y)[:, 0].tolist() == [0.625, 0.6875]
    first = Gap()
    first.calls = 1  # NaN in the very first loss of image 0
    assert attack(first, x, y)[:, 0].tolist() == [0.625, 0.6875]


def test_step_size_none_is_a_quarter_of_eps() -> None:
    x = dyadic(4, 3, 6, 6)
    common: dict[str, Any] = dict(eps=1 / 32, steps=3, random_start=False)
    quarter = PGD(**common, step_size=1 / 128)(Mixed(), x, Y)
    assert torch.equal(PGD(**common, step_size=None)(Mixed(), x, Y), quarter)
    assert not torch.equal(PGD(**common, step_size=1 / 64)(Mixed(), x, Y), quarter)
    from_threat = PGD(eps=None, step_size=None, steps=3, random_start=False)
    assert torch.equal(from_threat.under(ThreatModel(eps=1 / 32))(Mixed(), x, Y), quarter)


def test_no_random_start_draws_nothing() -> None:
    x = images(4, 3, 6, 6)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state(), torch.get_rng_state()
    PGD(steps=2, random_start=False)(Mixed(), x, Y, generator)
    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_random_start_matters() -> None:
    x, model = images(4, 3, 6, 6), Mixed()
    results = [PGD(steps=1)(model, x, Y, torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert not torch.equal(*results)


def test_images_in_other_bounds() -> None:
    x = images(4, 3, 6, 6) * 255
    x_adv = PGD(eps=8.0, step_size=2.0, steps=5, bounds=(0.0, 255.0))(Mixed(), x, Y)
    assert x_adv.min() >= 0 and x_adv.max() <= 255 and x_adv.max() > 200
    assert 4 < (x_adv - x).abs().max() <= 8


def test_the_label_names_the_steps() -> None:
    assert PGD(steps=7).label == "pgd-7"


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "3", None])
def test_wrong_steps(steps: Any) -> None:
    with pytest.raises(ArgumentError, match="`steps`: expected an integer >= 1, got"):
        PGD(steps=steps)


@pytest.mark.parametrize("keep", ["Best", None, True, "worst"])
def test_wrong_keep(keep: Any) -> None:
    with pytest.raises(ArgumentError, match="`keep`: expected 'last' or 'best' or 'adv"):
        PGD(keep=keep)


@pytest.mark.parametrize("step_size", [0, -2 / 255, math.nan])
def test_wrong_step_size(step_size: float) -> None:
    with pytest.raises(ArgumentError, match="`step_size`: expected a number > 0"):
        PGD(step_size=step_size)


def test_all_missing_fields_are_named_together() -> None:
    with pytest.raises(ArgumentError, match="`norm, bounds`: expected a value"):
        PGD(norm=None, bounds=None)(Mixed(), images(4, 3, 6, 6), Y)


def test_a_generator_of_another_kind() -> None:
    with pytest.raises(ArgumentTypeError, match="`generator`: expected a torch.Generator"):
        PGD()(Mixed(), images(4, 3, 6, 6), Y, 0)  # pyright: ignore
