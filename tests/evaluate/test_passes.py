"""What an attack is said to take, beside what it takes."""

from typing import Any

import pytest
import torch
from tiny_attacks import short
from tiny_models import images, tiny
from torch import Tensor, nn

from roli_fast import PGD
from roli_fast.attacks import ATTACKS
from roli_fast.evaluate import attack_passes


class Counted(nn.Module):
    """A network that counts the samples that pass, forward and back to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.passes = tiny(num_classes=10).eval(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.count(len(x))
        if x.requires_grad:
            x.register_hook(lambda _grad: self.count(len(x)))
        return self.network(x)

    def count(self, samples: int) -> Any:
        self.passes += samples


@pytest.mark.parametrize("name", list(ATTACKS))
def test_no_attack_takes_more_than_is_said(name: str) -> None:
    attack, model, state = short(ATTACKS[name], "linf"), Counted(), torch.get_rng_state()
    x = images(6, 3, 8, 8)
    y = model(x).argmax(1)
    model.passes = 0
    attack(model, x, y, torch.Generator().manual_seed(0))
    said = 6 * attack_passes(attack)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.7 * said <= model.passes <= (1.05 if name in ("fab-t", "autoattack") else 1) * said


@pytest.mark.parametrize(
    ("attack", "passes"),
    [
        (PGD(steps=7), 14),
        (PGD(steps=7, keep="best"), 15),
        (PGD(steps=4, restarts=3), 3 * (4 + 1) + 12),
        (PGD(steps=4, eot=2), 16),
        (PGD(steps=4, loss="kl"), 9),
        (PGD(steps=4, bounds=(-1.0, 1.0)), 8),
        (None, 0),
    ],
)
def test_the_passes_of_pgd(attack: PGD | None, passes: int) -> None:
    assert attack_passes(attack, 5) == passes


def test_targets_are_of_the_models_classes() -> None:
    attack = short(ATTACKS["apgd-t"], "linf")
    assert attack_passes(attack, 4) < attack_passes(attack, 10)
