"""RAMP by hand, and against the authors' three forwards written out."""

import math
from dataclasses import replace

import pytest
import torch
from given_norms import REAL, Given, WithBN, given, result, trained_on
from tiny_models import FixedLogits, images, tiny
from torch import Tensor, nn
from torch.nn import functional

from roli_fast.data import Batch
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


NOBODY = given(linf=result(X_Q[[1, 1]], [1.0, 1.0]), l1=result(X_R, [0.2, 0.5]))
HIGHER = given(linf=result(X_Q, [0.3, 0.5]), l1=result(X_R, [0.2, 0.5]))
TWO = Batch(torch.zeros(2, 1, 1, 2), torch.tensor([0, 0]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("objective", "found", "truth"),
    [
        (RAMP("linf", "l1"), FOUND, L_MAX + 1.5 * PAIRING),
        (RAMP("linf", "l1", weight=0), FOUND, L_MAX),
        # clean logits 0: CE ln 2; KL from there to (1/2, 1/2) is 0, to (1/4, 3/4) ln(4/3) / 2
        (
            RAMP("linf", "l1", trades_beta=6.0),
            FOUND,
            math.log(2) + 6 * 0.25 * math.log(4 / 3) + 1.5 * PAIRING,
        ),
        # both sources are right (argmax of equal logits is the first), and a tie of the losses goes
        # to the source: KL ln(4/3) / 2 and the divergence of (3/4, 1/4) from its mirror, ln(3) / 2
        (
            RAMP("l1", "linf", weight=1.0),
            FOUND,
            (math.log(2) + math.log(4 / 3)) / 2 + (0.5 * math.log(4 / 3) + 0.5 * L3) / 2,
        ),
        (RAMP("linf", "l1"), NOBODY, math.log(4)),  # nobody right leaves L_max
        # where the attack, in eval mode, saw the larger loss at x_q, x_q it is
        (RAMP("linf", "l1", weight=0), HIGHER, (math.log(4 / 3) + math.log(4)) / 2),
    ],
    ids=["pairing", "no pairing", "trades", "to linf", "nobody right", "higher at x_q"],
)
def test_by_hand(objective: RAMP, found: Given, truth: float) -> None:
    terms = trained_on(objective, FixedLogits(torch.eye(2)), TWO, found)
    assert terms.loss.item() == pytest.approx(truth, rel=1e-6)
    assert not terms.logits.requires_grad and terms.counts is None
    if found is FOUND and objective.source == "linf":
        assert terms.logits.tolist() == [[0.0, 0.0], [0.0, pytest.approx(L3)]]


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
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-8, atol=1e-12)
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
