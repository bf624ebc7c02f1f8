"""RoLI's adv_generator: by hand, beside a textbook version of its loop, and what it leaves behind.

Truth is that loop in eager torch, written here from the specification: the candidates are the start
and every iterate, the best is each image's own where the criterion gives one loss a sample.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import Mixed, images, untouched
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roli_fast.compat.roli import adv_generator
from roli_fast.errors import ArgumentError

X = images(6, 3, 6, 6)
EPS, LR = 8 / 255, 2 / 255
WEIGHTS = [1.0, 2.0, 0.5, 1.5]


def each(logits: Tensor, target: Tensor, weights: Any) -> Tensor:
    return cross_entropy(logits, target, reduction="none") * torch.tensor(weights)[target]


def mean(logits: Tensor, target: Tensor, weights: Any) -> Tensor:
    """As the release's criterion: a number for the batch."""
    return each(logits, target, weights).sum() / len(target)


def textbook(  # noqa: PLR0913
    model: nn.Module, x: Tensor, y: Tensor, steps: int, best: bool, start: Tensor | None = None
) -> Tensor:
    x_adv, highest, kept = x if start is None else start, torch.full((len(x),), -torch.inf), x
    for step in range(steps + 1):
        x_adv = x_adv.detach().requires_grad_(True)
        losses = each(model(x_adv), y, WEIGHTS)
        better = (losses > highest).view(-1, 1, 1, 1)
        kept = torch.where(better, x_adv, kept).detach()
        highest = torch.maximum(highest, losses.detach())
        if step < steps:
            (grad,) = torch.autograd.grad(losses.mean(), x_adv)
            moved = x_adv + LR * grad.sign()
            x_adv = (x + (moved - x).clamp(-EPS, EPS)).clamp(0, 1)
    return kept if best else x_adv.detach()


def labels(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X).argmax(1)


def test_arguments_in_the_releases_order() -> None:
    names = list(inspect.signature(adv_generator).parameters)
    assert names[:6] == ["images", "target", "model", "eps", "attack_steps", "attack_lr"]
    assert names[6:10] == ["random_start", "attack_criterion", "cls_weights", "use_best"]


@pytest.mark.parametrize("criterion", [None, each, mean])
@pytest.mark.parametrize("use_best", [True, False])
def test_the_releases_loop(criterion: Callable[..., Tensor] | None, use_best: bool) -> None:
    """To half the spacing of fp32 below 1: the ball's limits are rounded inward here."""
    model = Mixed().eval()
    y = labels(model)
    truth = textbook(model, X, y, 7, use_best)
    found = adv_generator(X, y, model, EPS, 7, LR, False, criterion, WEIGHTS, use_best)
    assert (found - truth).abs().max() <= 2.0**-24
    assert (truth - X).abs().max() > 0.03


def test_the_best_iterate_is_the_images_own() -> None:
    """One image's loss falls at the second step, which jumps over its maximum; the other's not."""

    class Hills(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            height = -((x[:, 0] - 0.55).abs())
            return torch.stack([-height, height * 0], dim=1)

    x, y = torch.tensor([[0.5, 0.5], [0.2, 0.5]]), torch.tensor([0, 0])
    found = adv_generator(x, y, Hills(), 0.3, 2, 0.06, False, mean, [1.0, 1.0])
    assert found[:, 0].tolist() == pytest.approx([0.56, 0.32])
    last = adv_generator(x, y, Hills(), 0.3, 2, 0.06, False, mean, [1.0, 1.0], use_best=False)
    assert last[:, 0].tolist() == pytest.approx([0.5, 0.32])


@pytest.mark.parametrize("use_best", [True, False])
def test_the_releases_random_start(use_best: bool) -> None:
    """x + 2 (u - 0.5) eps in the box, u from torch's global generator: the same images."""
    model = Mixed().eval()
    y = labels(model)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        start = (X + 2 * (torch.rand_like(X) - 0.5) * EPS).clamp(0, 1)
        after = torch.get_rng_state()
        torch.manual_seed(4)
        found = adv_generator(X, y, model, EPS, 3, LR, True, mean, WEIGHTS, use_best)
        assert torch.equal(torch.get_rng_state(), after)
    truth = textbook(model, X, y, 3, use_best, start)
    assert (found - truth).abs().max() <= 2.0**-24
    seeded = torch.Generator().manual_seed(4)
    with untouched(model):
        again = adv_generator(
            X, y, model, EPS, 3, LR, True, mean, WEIGHTS, use_best, generator=seeded
        )
    assert torch.equal(again, found)


def test_what_is_refused() -> None:
    model, y = Mixed(), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ArgumentError, match="`cls_weights`: expected weights > 0"):
        adv_generator(X, y, model, EPS, 2, LR, False, None, [1.0, 0.0, 1.0, 1.0])
    with pytest.raises(ArgumentError, match="`loss`: expected one value a sample"):
        adv_generator(X, y, model, EPS, 2, LR, False, lambda logits, *_: logits)
