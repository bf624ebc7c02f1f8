"""What a sample costs: forwards, backwards to the input, backwards to the weights, at 10 steps."""

import pytest
import torch
from given_norms import REAL, Passes, WithBN, trained_on
from tiny_models import images, tiny
from torch import nn

from roli_fast.attacks import PGD, Attack
from roli_fast.data import Batch
from roli_fast.train.objectives import OBJECTIVES, RAMP, Objective

PGD_10 = PGD(eps=8 / 255, step_size=None, steps=10)
KL_10 = PGD(eps=8 / 255, step_size=None, steps=10, loss="kl")
PAIR = {"source": "linf", "target": "l1"}


def cost(objective: Objective, attack: Attack, model: nn.Module) -> tuple[float, float, float]:
    batch = Batch(images(4, 3, 8, 8), torch.arange(4), torch.arange(4))
    counted = Passes(model.train())
    trained_on(objective, counted, batch, attack).loss.backward()
    return counted.each(4)


@pytest.mark.parametrize(
    ("name", "attack", "expected"),
    [
        ("adversarial", PGD_10, (11, 10, 1)),  # AT
        ("adversarial", REAL, (32, 28, 1)),  # MAX over three norms
        ("eat", REAL, (12, 10, 1)),
        ("sat", REAL, (12, 10, 1)),
        ("avg", REAL, (34, 28, 3)),
        ("ramp", REAL, (23, 19, 2)),
        ("trades", KL_10, (13, 10, 2)),
    ],
)
def test_without_batch_statistics(
    name: str, attack: Attack, expected: tuple[float, float, float]
) -> None:
    assert cost(OBJECTIVES[name](), attack, tiny("vit_tiny_patch16_224")) == expected


@pytest.mark.parametrize(
    ("name", "attack", "expected"),
    [
        ("adversarial", REAL, (32, 28, 1)),
        ("eat", REAL, (12, 10, 1)),
        ("avg", REAL, (34, 28, 3)),
        ("ramp", REAL, (24, 19, 3)),
        ("trades", KL_10, (13, 10, 2)),
    ],
)
def test_with_batch_normalisation(
    name: str, attack: Attack, expected: tuple[float, float, float]
) -> None:
    assert cost(OBJECTIVES[name](), attack, WithBN()) == expected


def test_drop_path_counts_as_batch_statistics_do() -> None:
    model = tiny("vit_tiny_patch16_224")
    model.backbone.blocks[1].drop_path1 = nn.Dropout(0.1)  # pyright: ignore
    assert cost(RAMP(**PAIR), REAL, model) == (24, 19, 3)


def test_the_form_with_trades_costs_one_forward_more() -> None:
    objective = RAMP(**PAIR, trades_beta=6.0)
    assert cost(objective, REAL, tiny("vit_tiny_patch16_224")) == (24, 19, 3)
    assert cost(objective, REAL, WithBN()) == (25, 19, 4)
