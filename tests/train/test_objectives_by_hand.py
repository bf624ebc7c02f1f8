"""E-AT, SAT, AVG and TRADES on numbers worked by hand; their draws replayed exactly."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from given_norms import REAL, WithBN, given, result, trained_on
from tiny_models import FixedLogits, images, tiny
from torch import Tensor, nn
from torch.nn import functional

from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError
from roli_fast.threat import ThreatModel
from roli_fast.train.objectives import AVG, EAT, RAMP, SAT, TRADES, Objective

L3 = math.log(3.0)


def pixels(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).view(-1, 1, 1, 2)


FOUND = given(
    linf=result(pixels((L3, 0), (0, L3)), [0.0, 0.0], [True, False]),  # CE ln(4/3), ln 4
    l2=result(pixels((0, 0), (0, 0)), [0.0, 0.0], [True, True]),  # ln 2, ln 2
    l1=result(pixels((0, L3), (L3, 0)), [0.0, 0.0], [False, False]),  # ln 4, ln(4/3)
)
"""Both labels are 0, and pixels are logits."""
TWO = Batch(pixels((0, 0), (0, 0)), torch.tensor([0, 0]), torch.tensor([0, 1]))


def called(objective: Objective, **step: Any) -> Any:
    return trained_on(objective, FixedLogits(torch.eye(2)), TWO, FOUND, **step)


@pytest.mark.parametrize(
    ("so_far", "truth"),
    [
        ((0, 0, 0, 0), (0.5, 0.5)),
        ((3, 0, 8, 0), (0.5, 0.5)),  # l1 was never drawn
        ((6, 2, 8, 8), (0.25, 0.75)),  # 1/4 and 3/4 wrong
        ((6, 50, 8, 100), (1 / 3, 2 / 3)),  # 1/4 and 1/2
        ((8, 5, 8, 8), (0.0, 1.0)),
        ((8, 8, 8, 8), (0.5, 0.5)),  # nobody was ever fooled
    ],
)
def test_eat_draws_by_its_counts_and_counts_who_was_robust(
    so_far: tuple[float, ...], truth: tuple[float, float]
) -> None:
    """linf below its probability, l1 from there on, the end of rounding included. In linf one was
    robust, in l1 nobody."""
    assert EAT().probabilities(so_far) == pytest.approx(truth)
    counts = torch.tensor(so_far, dtype=torch.float64)
    for draw in (0.0, truth[0] - 1e-9, truth[0] + 1e-9, 1 - 2**-53):
        terms = called(EAT(), counts=counts, draw=max(0.0, draw))
        linf = max(0.0, draw) < truth[0]
        assert terms.counts.tolist() == ([1, 0, 2, 0] if linf else [0, 0, 0, 2])
        assert terms.loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
        assert terms.counts.dtype == torch.float64


def test_sat_draws_all_norms_alike() -> None:
    """Each draw replayed, over the attack's norms and over two of them."""
    of_norm = {norm: called(SAT((norm,))).logits for norm in ("linf", "l2", "l1")}
    for draw in (0.0, 0.3, 0.4, 0.6, 0.7, 1 - 2**-53):
        for objective, norms in ((SAT(), ("linf", "l2", "l1")), (SAT(("l1", "l2")), ("l1", "l2"))):
            norm = norms[int(draw * len(norms))]
            assert torch.equal(called(objective, draw=draw).logits, of_norm[norm])


def test_avg_by_hand() -> None:
    terms = called(AVG())
    truth = 2 * (math.log(4 / 3) + math.log(2) + math.log(4)) / 6
    assert terms.loss.item() == pytest.approx(truth)
    assert terms.logits.tolist() == [[0.0, pytest.approx(L3)]] * 2  # of the largest loss
    pair = called(AVG(("linf", "l2")))
    assert pair.loss.item() == pytest.approx((math.log(4 / 3) + math.log(4) + 2 * math.log(2)) / 4)
    assert pair.logits.tolist() == [[0.0, 0.0], [0.0, pytest.approx(L3)]]


@pytest.mark.parametrize("network", ["vit", "bn"])
def test_trades_equals_a_plain_version(network: str) -> None:
    def network_of_a_seed() -> nn.Module:
        torch.manual_seed(0)
        vit = network == "vit"
        model = tiny("vit_tiny_patch16_224", num_classes=4) if vit else WithBN()
        return model.double().train()

    model, twin = network_of_a_seed(), network_of_a_seed()
    batch = Batch(images(6, 3, 8, 8).double(), torch.arange(6) % 4, torch.arange(6))
    attack = PGD(eps=0.05, step_size=None, steps=3, loss="kl")
    source = torch.Generator().manual_seed(0)
    x_adv = attack(model, batch.x, batch.y, source, sample_ids=batch.ids)
    clean, moved = twin(batch.x), twin(x_adv)
    loss = functional.cross_entropy(clean, batch.y)
    divergence = functional.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
    loss = loss + 4 * divergence
    terms = trained_on(TRADES(beta=4.0), model, batch, attack)
    assert divergence > 1e-6 and terms.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(terms.logits, moved)
    terms.loss.backward()
    loss.backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EAT(("linf",)), "`norms`: expected 2 or more different norms, got ('linf',)"),
        (lambda: AVG(("linf", "l3")), "`norms`: expected any of: l1, l2, linf, got 'l3'"),
        (lambda: TRADES(beta=-1), "`beta`: expected a number >= 0, got -1"),
        (lambda: RAMP(weight=-0.5), "`weight`: expected a number >= 0, got -0.5"),
        (lambda: RAMP("l1"), "`source and target`: expected 2 or more different norms, got ('l1',"),
    ],
)
def test_bad_fields_are_named(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        make()
    assert str(error.value).startswith(message)


ONE_NORM = replace(REAL, norms=None, eps=None).under(ThreatModel())


@pytest.mark.parametrize(
    ("objective", "attack", "message"),
    [
        (TRADES(), None, "`attack`: expected one beside objective trades, got None"),
        (RAMP(), PGD(), "`attack`: expected multi_apgd beside objective ramp, got PGD("),
        (EAT(), PGD(), "`attack`: expected multi_apgd beside objective eat, got PGD("),
        (AVG(), PGD(), "`attack`: expected multi_apgd beside objective avg, got PGD("),
        (RAMP("linf", "l1"), ONE_NORM, "got 'l1', which has no eps"),
        (SAT(("l1",)), ONE_NORM, "got 'l1', which has no eps"),
        (RAMP(), ONE_NORM, "`norms`: expected 2 or more in the attack, got ('linf',)"),
    ],
)
def test_an_attack_that_cannot_be_used_is_refused(
    objective: Objective, attack: Any, message: str
) -> None:
    with pytest.raises(ArgumentError) as error:
        objective.check(attack)
    assert message in str(error.value)
