"""The transfer attacks: their transforms by hand, and their steps beside plain PGD."""

import pytest
import torch
from tiny_attacks import generator, predicted
from tiny_models import Mixed, images
from torch import nn
from torch.nn import functional

from roli_fast.attacks import PGD, Transfer
from roli_fast.attacks.transfer import diverse, smoothed
from roli_fast.engine import InputGradient
from roli_fast.errors import ArgumentError

X = images(6, 3, 6, 6)
OFF = dict(momentum=0.0, diversity=0.0, random_start=False)


def test_with_everything_off_it_is_pgd() -> None:
    model, y = Mixed(), predicted(Mixed(), X)
    for more in ({}, {"momentum": 0.7}):
        plain = PGD(steps=3, random_start=False, **more)(model, X, y)
        own = Transfer(steps=3, **(OFF | more))(model, X, y)
        assert torch.equal(plain, own)


def test_scaled_images_are_those_of_interpolate_at_their_place() -> None:
    x = images(3, 2, 10, 8)
    draws = torch.tensor([[0.4, 0.25, 0.0, 0.999], [0.4, 0.75, 0.6, 0.3], [0.6, 0.1, 0.1, 0.1]])
    found = diverse(x, draws, probability=0.5, least=0.5)
    assert torch.equal(found[2], x[2])  # 0.6 is not below the probability
    # shares 0.625 and 0.875 of 10 x 8: sides 6 x 5 and 8 x 7
    for row, (high, wide), (top, left) in ((0, (6, 5), (0, 3)), (1, (8, 7), (1, 0))):
        small = functional.interpolate(x[row : row + 1], (high, wide), mode="bilinear")
        expected = functional.pad(small, (left, 8 - wide - left, top, 10 - high - top))
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-6, rtol=0)


def test_gradients_are_smoothed_by_a_gaussian() -> None:
    spike = torch.zeros(1, 1, 7, 7)
    spike[0, 0, 3, 3] = 1.0
    weights = torch.exp(-(torch.tensor([-3.0, 0.0, 3.0]) ** 2) / 2)
    line = weights / weights.sum()
    expected = functional.pad(line[:, None] * line, (2, 2, 2, 2))
    torch.testing.assert_close(smoothed(spike, 3)[0, 0], expected)


def step(**options) -> torch.Tensor:
    """Where one step of l2 with the given gradient goes."""
    attack = Transfer(norm="l2", eps=0.5, step_size=0.25, steps=2, **(OFF | options))
    return attack(Mixed().double(), X.double(), predicted(Mixed(), X), generator())


def test_scales_are_means_through_the_division() -> None:
    """SI-FGSM with two scales: half of g(x) + g(x / 2) / 2, worked by hand for one step."""
    model, y, x = Mixed().double(), predicted(Mixed(), X), X.double()
    attack = Transfer(norm="l2", eps=0.5, step_size=0.25, steps=1, scales=2, **OFF)
    with InputGradient(model) as gradient:
        total = (gradient(x, y)[0] + gradient(x / 2, y)[0] / 2) / 2
    moved = x + 0.25 * total / total.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(attack(model, x, y), moved.clamp(0, 1), atol=1e-9, rtol=0)


def test_nesterov_looks_where_momentum_leads_and_neighbours_tune_the_second_step() -> None:
    model, y, x = Mixed().double(), predicted(Mixed(), X), X.double()
    seen: list[torch.Tensor] = []

    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.detach().clone())
            return self.inner(images)

    attack = Transfer(norm="l2", eps=9.0, step_size=0.25, steps=2, nesterov=True,
                      **(OFF | {"momentum": 0.5}))  # fmt: skip
    attack(Watch(), x, y)
    with InputGradient(model) as gradient:
        grad = gradient(x, y)[0]
    unit = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = (x + 0.25 * unit).clamp(0, 1) + 0.5 * 0.25 * unit
    torch.testing.assert_close(seen[-1], expected, atol=1e-9, rtol=0)
    assert torch.equal(step(), step()) and not torch.equal(step(), step(neighbours=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, "odd number of pixels"),
        ({"scales": 0}, "`scales`"),
        ({"diversity": 1.5}, r"share in \[0, 1\]"),
        ({"resize": 0.0}, "`resize`"),
        ({"keep": "best"}, "`keep`"),
    ],
)
def test_options_that_make_no_sense(options, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Transfer(**options)
