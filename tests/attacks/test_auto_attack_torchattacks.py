"""AutoAttack's components, and the whole, beside torchattacks', with the original's draws.

Flags are compared attack by attack on the official survivors: those that torchattacks' components
left right; each component alone has an oracle of its own. In fp64 they are equal. In fp32 at most
0.5 % may differ: two ways of adding up the same numbers put an image on either side of a boundary.
Images differ by definition, because the authors' code keeps the last misclassified iterate and ours
the first.

To run these: `pip install --no-deps torchattacks requests` (see `test_apgd_torchattacks.py`).
"""

from typing import Any

import pytest
import torch
from official_chain import Step, official_chain, peers
from oracle import Net, batch, margins, torchattacks
from tiny_models import untouched
from torch import Tensor

from roli_fast.compat.autoattack import AutoAttack as CompatAutoAttack
from roli_fast.compat.original_draws import OriginalAutoAttack

torchattacks()

EPS = {"linf": 0.05, "l2": 1.0}
COUNT, STEPS, QUERIES = 40, 12, 60
ALLOWED = {torch.float64: 0.0, torch.float32: 0.005}

Asked = tuple[Net, Tensor, Tensor]


def differing(ours: Tensor, theirs: Tensor, x_adv: Tensor, asked: Asked) -> list[Any]:
    """(sample, margin of our image) where the flags differ, to be read if the test fails."""
    found = margins(asked[0], x_adv, asked[2])
    return [(i, found[i].item()) for i in (ours != theirs).nonzero()[:, 0].tolist()]


@pytest.mark.parametrize(
    ("norm", "dtype"), [("linf", torch.float32), ("linf", torch.float64), ("l2", torch.float64)]
)
def test_each_component_on_the_official_survivors(norm: str, dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    x, y = batch(COUNT, model)
    x = x.to(dtype)
    asked = model, x, y
    chain = official_chain(model, peers(model, norm, EPS[norm], STEPS, QUERIES), x, y)
    assert COUNT / 8 < chain[-1].robust.sum() < chain[1].robust.sum() + 1 < chain[0].robust.sum()
    options: Any = dict(steps=STEPS, n_queries=QUERIES)
    attack = OriginalAutoAttack(norm=norm, eps=EPS[norm], seed=0, **options)
    for part, step in zip(attack.parts, chain, strict=True):
        result = part.run(model, x[step.attacked], y[step.attacked])
        robust, x_adv = torch.zeros_like(step.robust), x.clone()
        robust[step.attacked], x_adv[step.attacked] = ~result.fooled, result.x_adv
        wrong = differing(robust, step.robust, x_adv, asked)
        assert len(wrong) <= ALLOWED[dtype] * COUNT, f"{step.name}: {wrong}"
    with untouched(model):
        whole = attack.run(model, x, y)
    wrong = differing(~whole.fooled, chain[-1].robust, whole.x_adv, asked)
    assert len(wrong) <= ALLOWED[dtype] * COUNT, wrong


@pytest.mark.parametrize("norm", EPS)
def test_the_drop_in_goes_through_the_same_batches(norm: str) -> None:
    """Official draws depend on the batch, so batches of survivors have to be the same."""
    model = Net()
    x, y = batch(COUNT, model)
    chain = peers(model, norm, EPS[norm], STEPS, QUERIES)
    truth: list[Step] = official_chain(model, chain, x, y, bs=24)
    adversary = CompatAutoAttack(
        model, norm.capitalize(), EPS[norm], seed=0, device="cpu", verbose=False
    )
    for component in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        component.n_iter = STEPS
    adversary.square.n_queries = QUERIES
    x_adv = adversary.run_standard_evaluation(x, y, bs=24)
    assert torch.equal(margins(model, x_adv, y) < 0, truth[-1].robust)
