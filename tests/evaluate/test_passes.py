"""What an attack is said to take, beside what it takes."""

import pytest
import torch
from given_norms import Passes
from tiny_attacks import short
from tiny_models import images, tiny

from roli_fast import PGD
from roli_fast.attacks import ATTACKS
from roli_fast.evaluate import attack_passes


@pytest.mark.parametrize("name", list(ATTACKS))
def test_no_attack_takes_more_than_is_said(name: str) -> None:
    attack, network = short(ATTACKS[name], "linf"), tiny(num_classes=10).eval()
    model, x, state = Passes(network).eval(), images(6, 3, 8, 8), torch.get_rng_state()
    attack(model, x, network(x).argmax(1), torch.Generator().manual_seed(0))
    passes = model.forwards + model.to_input
    said = 6 * attack_passes(attack)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.7 * said <= passes <= (1.05 if name in ("fab-t", "autoattack") else 1) * said


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
