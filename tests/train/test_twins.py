"""TWINS beside a plain version in fp64."""

import copy

import pytest
import torch
from given_norms import WithBN, trained_on
from tiny_models import images
from torch import Tensor
from torch.nn import functional

from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.train.objectives import TWINS, attach

ATTACK = PGD(eps=0.1, step_size=None, steps=2)


def plain(model: WithBN, affine: tuple[Tensor, ...], x: Tensor, frozen: bool) -> Tensor:
    """WithBN, its BatchNorm written out: by statistics of 0.1 and 2, or by those of the batch."""
    maps = functional.conv2d(x, model.conv.weight, model.conv.bias)
    mean = maps.mean((0, 2, 3), keepdim=True)
    var = maps.var((0, 2, 3), unbiased=False, keepdim=True)
    if frozen:
        mean, var = torch.full_like(mean, 0.1), torch.full_like(var, 2.0)
    scale, shift = (one[:, None, None] for one in affine)
    maps = (maps - mean) / (var + 1e-5).sqrt() * scale + shift
    maps = functional.conv2d(maps.relu(), model.mix.weight, model.mix.bias)
    return functional.linear(maps.mean((2, 3)), model.head.weight, model.head.bias)


@pytest.mark.parametrize(
    ("objective", "factor"),
    [
        (TWINS(frozen_weight=0.4), (0.0, 0.0)),
        (TWINS(frozen_weight=0.4, beta=6.0), (6.0, 6.0)),
        (TWINS(beta=6.0, kl_mean="batch"), (12 / 5, 18 / 5)),  # halves of 2 and 3 of 5 images
    ],
    ids=["AT", "TRADES", "TRADES as released"],
)
def test_loss_gradients_and_statistics_by_hand(
    objective: TWINS, factor: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    model = WithBN().double().train()
    model.norm.running_mean = torch.full((4,), 0.1, dtype=torch.float64)
    model.norm.running_var = torch.full((4,), 2.0, dtype=torch.float64)
    names = attach(model, objective, 0)
    assert names == ["beside.norms.0.weight", "beside.norms.0.bias"]
    twin = copy.deepcopy(model)
    x, y, ids = images(5, 3, 8, 8).double(), torch.arange(5) % 4, torch.arange(5)
    x_adv = ATTACK(model, x, y, torch.Generator().manual_seed(0), sample_ids=ids)
    affine = {
        True: tuple(map(twin.get_parameter, names)),
        False: (twin.norm.weight, twin.norm.bias),
    }
    loss, moved = torch.zeros(()).double(), []
    for frozen, half, weight, beta in (
        (True, slice(0, 2), objective.frozen_weight, factor[0]),
        (False, slice(2, 5), 1.0, factor[1]),
    ):
        logits = plain(twin, affine[frozen], x_adv[half], frozen)
        clean = plain(twin, affine[frozen], x[half], frozen)
        ce = functional.cross_entropy(clean if objective.beta else logits, y[half])
        p, q = clean.softmax(1), logits.softmax(1)
        loss = loss + weight * (ce + beta * (p * (p.log() - q.log())).sum(1).mean())
        moved.append(logits)
    terms = trained_on(objective, model, Batch(x, y, ids), ATTACK)
    assert terms.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(terms.logits, torch.cat(moved))
    terms.loss.backward()
    loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)
    for name, value in (("running_mean", 0.1), ("running_var", 2.0)):
        first = torch.full((4,), value, dtype=torch.float64)
        assert torch.equal(model.get_buffer(f"beside.norms.0.{name}"), first)
        assert (model.get_buffer(f"norm.{name}") != first).all()
