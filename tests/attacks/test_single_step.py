"""The one-step attacks against numbers worked by hand."""

import pytest
import torch
from tiny_attacks import generator as source
from tiny_models import Counting, FixedLogits, Mixed, images

from roli_fast.attacks import FGSM, NFGSM, PGD, RSFGSM, SORA
from roli_fast.engine import Cost

WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0], [0.0] * 5])
"""Logits (w x, 0): away from label 0 is along -sign(w)."""
X = torch.tensor([[0.5, 0.25, 0.0, 1.0, 0.125]])
Y = torch.tensor([0])


def test_fgsm_by_hand() -> None:
    x_adv = FGSM(eps=1 / 16)(FixedLogits(WEIGHT), X, Y)
    assert x_adv.tolist() == [[0.4375, 0.3125, 0.0, 0.9375, 0.125]]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fgsm_is_pgd_with_one_step_of_eps_and_no_start(norm: str) -> None:
    x, y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])
    pgd = PGD(norm=norm, eps=0.25, step_size=0.25, steps=1, random_start=False)
    assert torch.equal(FGSM(norm=norm, eps=0.25)(Mixed(), x, y), pgd(Mixed(), x, y))


def test_rs_fgsm_is_pgd_with_one_step_of_five_quarters() -> None:
    x, y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])
    pgd = PGD(eps=0.25, step_size=0.3125, steps=1)
    rs = RSFGSM(eps=0.25)
    assert torch.equal(rs(Mixed(), x, y, source()), pgd(Mixed(), x, y, source()))


def test_n_fgsm_adds_the_whole_step_to_the_noise() -> None:
    """On a linear model: noise in the ball of 2 eps, then eps against sign(w), and no more."""
    x, y = 0.25 + images(64, 5) / 2, torch.zeros(64, dtype=torch.long)
    eps = 1 / 16
    delta = NFGSM(eps=eps)(FixedLogits(WEIGHT), x, y, source()) - x
    noise = delta + eps * WEIGHT[0].sign()
    assert noise.abs().max() <= 2 * eps + 1e-7 and noise.std() > eps  # uniform: 2 eps / sqrt(3)
    assert delta.abs().max() > 2.5 * eps


@pytest.mark.parametrize(("alignment", "longest"), [(1.0, 2), (0.99, 2), (0.9, 0.4), (-1.0, 0.02)])
def test_sora_by_hand(alignment: float, longest: float) -> None:
    """Away from a linear model's noise by u m, u in [0, 1] per value and m = min(1, 0.02 / (1 - c))
    2 eps; where the gradient is zero the noise in the ball alone is left."""
    x, y = 0.25 + images(256, 5) / 2, torch.zeros(256, dtype=torch.long)
    eps, sign = 1 / 16, WEIGHT[0].sign()
    attack = SORA(eps=eps, alignment=alignment)
    delta = (attack(FixedLogits(WEIGHT), x, y, source()) - x) / eps
    ways, still = (-delta * sign)[:, sign != 0], delta[:, sign == 0]
    assert still.abs().max() <= 1 + 1e-5 and still.std() > 0.5
    assert -1 - 1e-5 <= ways.min() < -0.9 and ways.max() <= 1 + longest + 1e-5
    assert ways.mean() == pytest.approx(longest / 2, abs=0.08)  # eta's mean is 0, u's is a half
    spread = (1 / 3 + longest**2 / 12) ** 0.5
    assert ways.std() == pytest.approx(spread, rel=0.08)
    if alignment == 1:  # into the bounds, and no nearer
        out = attack(FixedLogits(WEIGHT), torch.full_like(x, 0.99), y, source())
        assert out.max() == 1 and out.min() > 0.99 - 3 * eps - 1e-6


def test_dlr_with_two_classes_is_noted_and_a_step_is_one_pass() -> None:
    model = Counting(FixedLogits(WEIGHT))
    result = FGSM(eps=1 / 16, loss="dlr").run(model, X, Y)
    assert "margin was taken" in result.notes[0]
    assert result.x_adv.tolist() == [[0.4375, 0.3125, 0.0, 0.9375, 0.125]]
    assert result.cost == Cost(1, 1) == Cost(model.forwards, model.backwards)
