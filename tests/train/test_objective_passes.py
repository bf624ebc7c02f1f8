"""Which networks are forwarded once for several images a sample, and what a sample costs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from given_norms import REAL, Passes, WithBN, trained_on
from timm.layers import DropPath, EvoNorm2dB0
from tiny_models import images, tiny
from torch import nn

from roli_fast.attacks import PGD, Attack
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.peft import LoRA
from roli_fast.peft import apply as tuned
from roli_fast.train.objectives import AVG, EAT, RAMP, SAT, TRADES, Adversarial, Objective
from roli_fast.train.objectives.base import is_independent, logits_of

NOT_SO: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(3),
    "batch norm without statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False).eval(),
    "instance norm that keeps statistics": lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    "evo norm": lambda: EvoNorm2dB0(3),
    "dropout": lambda: nn.Dropout(0.1),
    "drop path": lambda: DropPath(0.1),
    "lstm": lambda: nn.LSTM(3, 3, 2, dropout=0.1),
    "rrelu": nn.RReLU,
    "timm's own call of dropout": lambda: tiny("resnet18", config={}).backbone.eval(),
}
SO: dict[str, Callable[[], nn.Module]] = {
    "batch norm in eval mode": lambda: nn.BatchNorm2d(3).eval(),
    "dropout of nothing": lambda: nn.Dropout(0.0),
    "dropout in eval mode": lambda: nn.Dropout(0.5).eval(),
    "instance norm": lambda: nn.InstanceNorm2d(3),
    "vit": lambda: tiny("vit_tiny_patch16_224").train(),
}


@pytest.mark.parametrize("name", [*NOT_SO, *SO])
def test_what_looks_at_the_batch_or_draws_is_seen(name: str) -> None:
    module = (NOT_SO | SO)[name]()
    if name.startswith("timm"):
        module.train()
        for part in module.modules():
            part.training = False
        module.drop_rate, module.training = 0.1, True  # pyright: ignore
    found = is_independent(nn.Sequential(nn.Linear(3, 3), nn.Sequential(module)))
    assert found == (name in SO)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_tuned_network_is_as_its_dropout(dropout: float) -> None:
    model, tuning = tiny("vit_tiny_patch16_224"), LoRA(rank=2, dropout=dropout)
    tuned(model, tuning, seed=0)
    tuning.train_mode(model)
    assert is_independent(model) == (dropout == 0)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_logits_are_those_of_each_batch_alone(batch_norm: bool) -> None:
    torch.manual_seed(0)
    model = WithBN() if batch_norm else tiny("vit_tiny_patch16_224")
    model = model.double().train()
    batches = [images(3, 3, 8, 8, seed=seed).double() for seed in range(3)]
    found = logits_of(model, batches, Engine())
    assert len(found) == 3
    for logits, batch in zip(found, batches, strict=True):
        assert torch.allclose(logits, model(batch), rtol=1e-10, atol=1e-12)


PGD_10 = PGD(eps=8 / 255, step_size=None, steps=10)
KL_10 = PGD(eps=8 / 255, step_size=None, steps=10, loss="kl")


def cost(objective: Objective, attack: Attack, model: nn.Module) -> tuple[float, float, float]:
    batch = Batch(images(4, 3, 8, 8), torch.arange(4), torch.arange(4))
    counted = Passes(model.train())
    trained_on(objective, counted, batch, attack).loss.backward()
    return counted.each(4)


@pytest.mark.parametrize(
    ("objective", "attack", "vit", "batch_norm"),
    [
        (Adversarial(), PGD_10, (11, 10, 1), (11, 10, 1)),  # AT
        (Adversarial(), REAL, (32, 28, 1), (32, 28, 1)),  # MAX over three norms
        (EAT(), REAL, (12, 10, 1), (12, 10, 1)),
        (SAT(), REAL, (12, 10, 1), (12, 10, 1)),
        (AVG(), REAL, (34, 28, 3), (34, 28, 3)),
        (RAMP(), REAL, (23, 19, 2), (24, 19, 3)),
        (RAMP("linf", "l1", trades_beta=6.0), REAL, (24, 19, 3), (25, 19, 4)),
        (TRADES(), KL_10, (13, 10, 2), (13, 10, 2)),
    ],
)
def test_what_a_sample_costs(
    objective: Objective, attack: Attack, vit: Any, batch_norm: Any
) -> None:
    """Forwards, backwards to the input, backwards to the weights, at 10 steps."""
    assert objective.images(attack) == vit[2]
    assert cost(objective, attack, tiny("vit_tiny_patch16_224")) == vit
    assert cost(objective, attack, WithBN()) == batch_norm
