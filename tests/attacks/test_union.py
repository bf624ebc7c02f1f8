"""Union: several threats, each on what those before left, or each on all."""

from typing import Any

import pytest
import torch
from tiny_attacks import generator
from tiny_models import untouched
from torch import Tensor
from wavy import Wavy, pictures, predicted

from roli_fast.attacks import APGD, PGD, AutoAttack, Union
from roli_fast.engine import Engine
from roli_fast.norms import NORMS
from roli_fast.threat import ThreatModel

THREATS = [("linf", 0.003), ("l2", 0.06), ("l1", 0.8)]


def small(**options: Any) -> Union:
    return Union.over(THREATS, attack=APGD(norm=None, eps=None, steps=4), **options)


@pytest.fixture
def asked() -> tuple[Wavy, Tensor, Tensor]:
    model, x = Wavy(), pictures(16)
    y = predicted(model, x)
    y[3] = (y[3] + 1) % 6
    return model, x, y


@pytest.mark.parametrize("every", [False, True])
def test_an_image_is_robust_only_if_it_survives_every_threat(every: bool, asked: Any) -> None:
    model, x, y = asked
    union = small(every=every)
    with untouched(model):
        result = union.run(model, x, y, generator())
    assert result.fooled is not None and result.fooled_by is not None
    assert torch.equal(predicted(model, result.x_adv) != y, result.fooled)
    assert 3 <= result.fooled.sum() < 16 and len(set(result.fooled_by.tolist())) >= 3
    for number, (norm, eps) in enumerate(THREATS):
        rows = result.fooled_by == number
        assert (NORMS[norm].distance(result.x_adv[rows], x[rows]) <= eps * (1 + 1e-6)).all()
    kept = result.fooled_by < 0  # right to the end, or wrong from the start
    assert torch.equal(result.x_adv[kept], x[kept])
    assert result.fooled[3] and kept[3]
    assert len(result.notes) == 3
    assert result.notes[0].startswith(
        f"apgd-ce-4 linf 0.003: fooled {int((result.fooled_by == 0).sum())} of 15"
    )


def test_every_tells_the_accuracy_under_each_threat(asked: Any) -> None:
    model, x, y = asked
    union = small(every=True)
    result = union.run(model, x, y, generator())
    assert list(result.robust_under) == list(union.names)
    assert union.names[1] == "apgd-ce-4 l2 0.06"
    survived = torch.stack([*result.robust_under.values()])
    assert result.fooled is not None and torch.equal(survived.all(0), ~result.fooled)
    assert not survived[:, 3].any()
    lean = small().run(model, x, y, generator())
    assert lean.robust_under == {} and lean.cost.forward_images < result.cost.forward_images


def test_what_was_lost_inside_an_ensemble_is_counted() -> None:
    model, x = Wavy(dtype=torch.float32), pictures(64, torch.float32)
    y, short = predicted(model, x), Engine(dtype=torch.bfloat16).bind(model)
    lost = 0
    for eps in (0.006, 0.008):
        attack = AutoAttack(norm="linf", eps=eps, steps=4, n_queries=10)
        result = Union((attack,)).run(short, x, y, generator())
        said = [int(n.split("; ")[1].split()[0]) for n in result.notes if "asked again" in n]
        assert result.lost == sum(said)
        lost += result.lost
    assert lost > 0


def test_under_fills_what_is_none() -> None:
    union = Union((PGD(norm=None, eps=None), PGD(norm="l2", eps=0.5)))
    filled = union.under(ThreatModel("linf", 0.1))
    assert filled.names == ("pgd-10 linf 0.1", "pgd-10 l2 0.5")
