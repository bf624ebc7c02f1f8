"""RAMP by hand, and against the authors' three forwards written out."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from given_norms import REAL, Given, WithBN, given, result, trained_on
from tiny_models import FixedLogits, images, tiny
from torch import Tensor, nn
from torch.nn import functional

from roli_fast.attacks import PGD, Attack
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError
from roli_fast.threat import ThreatModel
from roli_fast.train.objectives import RAMP
from roli_fast.train.objectives.base import is_independent

L3 = math.log(3.0)
X_Q = torch.tensor([[L3, 0.0], [0.0, L3]]).view(2, 1, 1, 2)
"""p = (3/4, 1/4): right; (1/4, 3/4): wrong. Both labels are 0."""
X_R = torch.tensor([[0.0, 0.0], [L3, 0.0]]).view(2, 1, 1, 2)
"""p = (1/2, 1/2); (3/4, 1/4)."""
FOUND = given(linf=result(X_Q, [0.1, 0.5]), l1=result(X_R, [0.2, 0.5]))
"""In eval mode x_r had the larger loss of the first sample, and neither that of the second."""
PAIRING = 0.75 * math.log(1.5) - 0.25 * math.log(2)
"""KL of the first sample, the only one right."""
L_MAX = (math.log(2) + math.log(4)) / 2


def pixels_as_logits() -> FixedLogits:
    return FixedLogits(torch.eye(2))


def two(x: Tensor | None = None) -> Batch:
    clean = torch.zeros(2, 1, 1, 2) if x is None else x
    return Batch(clean, torch.tensor([0, 0]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("fields", "truth"),
    [
        ({}, L_MAX + 1.5 * PAIRING),
        ({"weight": 0.0}, L_MAX),
        ({"weight": 5.0}, L_MAX + 5 * PAIRING),
    ],
)
def test_by_hand(fields: dict[str, Any], truth: float) -> None:
    objective = RAMP("linf", "l1", **fields)
    terms = trained_on(objective, pixels_as_logits(), two(), FOUND)
    assert terms.loss.item() == pytest.approx(truth, rel=1e-6)
    assert terms.logits.tolist() == [[0.0, 0.0], [0.0, pytest.approx(L3)]]
    assert not terms.logits.requires_grad and terms.counts is None


def test_the_other_direction_by_hand() -> None:
    """From l1 to linf both sources are right (argmax of equal logits is the first), and a tie of
    the losses goes to the source: KL ln(4/3) / 2 and the divergence of (3/4, 1/4) from its mirror,
    ln(3) / 2."""
    terms = trained_on(RAMP("l1", "linf", weight=1.0), pixels_as_logits(), two(), FOUND)
    l_max = (math.log(2) + math.log(4 / 3)) / 2
    pairing = (0.5 * math.log(4 / 3) + 0.5 * L3) / 2
    assert terms.loss.item() == pytest.approx(l_max + pairing, rel=1e-6)


def test_the_form_with_trades_by_hand() -> None:
    """Clean logits 0: CE ln 2. KL from there to (1/2, 1/2) is 0, to (1/4, 3/4) ln(4/3) / 2."""
    objective = RAMP("linf", "l1", trades_beta=6.0)
    terms = trained_on(objective, pixels_as_logits(), two(), FOUND)
    truth = math.log(2) + 6 * 0.25 * math.log(4 / 3) + 1.5 * PAIRING
    assert terms.loss.item() == pytest.approx(truth, rel=1e-6)


def test_nobody_right_leaves_l_max() -> None:
    found = given(linf=result(X_Q[[1, 1]], [1.0, 1.0]), l1=result(X_R, [0.2, 0.5]))
    terms = trained_on(RAMP("linf", "l1"), pixels_as_logits(), two(), found)
    assert terms.loss.item() == pytest.approx(math.log(4), rel=1e-6)


def test_the_loss_is_the_attacks_and_not_that_of_the_update() -> None:
    """Where the attack, in eval mode, saw the larger loss at x_q, x_q it is."""
    found = given(linf=result(X_Q, [0.3, 0.5]), l1=result(X_R, [0.2, 0.5]))
    terms = trained_on(RAMP("linf", "l1", weight=0), pixels_as_logits(), two(), found)
    assert terms.loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-6)


def random_results(shape: tuple[int, ...]) -> Given:
    x_q, x_r = (images(*shape, seed=seed).double() for seed in (1, 2))
    losses = images(2, shape[0], seed=3).tolist()
    return given(linf=result(x_q, losses[0]), l1=result(x_r, losses[1]))


def as_released(
    model: nn.Module, found: Given, y: Tensor, clean: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Three forwards, and the KL summed by a plain loop; with `clean` TRADES' loss at 6."""
    q, r = found.results["linf"], found.results["l1"]
    chosen = [a if i else b for a, b, i in zip(q.x_adv, r.x_adv, q.loss >= r.loss, strict=True)]
    z_q, z_r, z_max = (model(x) for x in (q.x_adv, r.x_adv, torch.stack(chosen)))
    loss = functional.cross_entropy(z_max, y)
    if clean is not None:
        z = model(clean)
        loss = functional.cross_entropy(z, y)
        ours, theirs = z_max.log_softmax(1), z.softmax(1)
        loss = loss + 6 * functional.kl_div(ours, theirs, reduction="batchmean")
    right = [i for i in range(len(y)) if int(z_q[i].argmax()) == int(y[i])]
    assert 0 < len(right) < len(y)
    for i in right:
        p, other = z_q[i].softmax(0), z_r[i].softmax(0)
        loss = loss + 1.5 * (p * (p / other).log()).sum() / len(right)
    return loss, z_max


@pytest.mark.parametrize("beta", [0.0, 6.0])
@pytest.mark.parametrize("network", ["vit", "bn"])
def test_it_equals_the_authors_three_forwards(network: str, beta: float) -> None:
    """Gathered from one forward without BN; with it also the running statistics are theirs."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        made = tiny("vit_tiny_patch16_224", num_classes=4) if network == "vit" else WithBN()
        models.append(made.double().train())
    ours, theirs = models
    theirs.load_state_dict(ours.state_dict())
    found = random_results((12, 3, 8, 8))
    clean = images(12, 3, 8, 8, seed=4).double()
    y = torch.arange(12) % 4
    with torch.no_grad():
        y[:5] = ours.eval()(found.results["linf"].x_adv).argmax(1)[:5]
    ours.train()
    assert is_independent(ours) == (network == "vit")
    batch = Batch(clean, y, torch.arange(12))
    terms = trained_on(RAMP("linf", "l1", trades_beta=beta), ours, batch, found)
    loss, z_max = as_released(theirs, found, y, clean if beta else None)
    assert terms.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(terms.logits, z_max, rtol=1e-10, atol=1e-12)
    terms.loss.backward()
    loss.backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None
        assert torch.allclose(mine.grad, other.grad, rtol=1e-8, atol=1e-12)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-12)


def test_the_pair_is_the_two_norms_of_lowest_accuracy() -> None:
    measured = {"linf": 0.48, "l2": 0.6, "l1": 0.08}
    objective = RAMP()
    assert objective.needs_accuracies
    settled = objective.settled(measured)
    assert settled == RAMP(source="linf", target="l1") and not settled.needs_accuracies
    found = replace(objective, weight=2.0).settled({"linf": 0.5, "l2": 0.2, "l1": 0.3})
    assert (found.source, found.target, found.weight) == ("l1", "l2", 2.0)
    assert RAMP("l2", "l1").settled(measured) == RAMP("l2", "l1")


def test_with_real_attacks_the_loss_is_that_of_what_they_find() -> None:
    model = tiny("vit_tiny_patch16_224", num_classes=4).double()
    batch = Batch(images(6, 3, 8, 8).double(), torch.arange(6) % 4, torch.arange(6))
    attack = replace(REAL, steps=3)
    found = attack.only("linf", "l1").run(model, batch.x, batch.y).found
    same = trained_on(RAMP("linf", "l1"), model, batch, given(**found))
    terms = trained_on(RAMP("linf", "l1"), model, batch, attack)
    assert terms.loss.item() == pytest.approx(same.loss.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "l1", "target": "l1"}, "`target`: expected another norm than source, 'l1'"),
        ({"source": "l1"}, "`target`: expected a norm beside the other's, got None. Name both"),
        ({"source": "l3", "target": "l1"}, "`source`: expected any of: l1, l2, linf, got 'l3'"),
        ({"weight": -0.5}, "`weight`: expected a number >= 0, got -0.5"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        RAMP(**fields)
    assert str(error.value).startswith(message)


def one_norm() -> Attack:
    return replace(REAL, norms=None, eps=None).under(ThreatModel())


@pytest.mark.parametrize(
    ("objective", "attack", "message"),
    [
        (RAMP(), None, "`attack`: expected one beside objective ramp, got None"),
        (RAMP(), PGD(), "`attack`: expected multi_apgd beside objective ramp, got PGD("),
        (RAMP("linf", "l1"), one_norm(), "got 'l1', which has no eps"),
        (RAMP(), one_norm(), "`norms`: expected 2 or more in the attack, got ('linf',)"),
    ],
)
def test_an_attack_that_it_cannot_use_is_refused(
    objective: RAMP, attack: Attack | None, message: str
) -> None:
    with pytest.raises(ArgumentError) as error:
        objective.check(attack)
    assert message in str(error.value)
