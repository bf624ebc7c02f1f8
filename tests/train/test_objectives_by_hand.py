"""E-AT, SAT, AVG and TRADES on numbers worked by hand; their draws replayed exactly."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from given_norms import REAL, WithBN, given, result, trained_on
from tiny_models import FixedLogits, images, tiny
from torch import Tensor
from torch.nn import functional

from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError
from roli_fast.threat import ThreatModel
from roli_fast.train.objectives import AVG, EAT, SAT, TRADES, Objective, Step

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


def pixels_as_logits() -> FixedLogits:
    return FixedLogits(torch.eye(2))


def counts(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def called(objective: Objective, attack: Any = FOUND, batch: Batch = TWO) -> Any:
    return objective(Step(pixels_as_logits(), batch, attack, torch.Generator(), Engine()))


@pytest.mark.parametrize(
    ("so_far", "truth"),
    [
        ((0, 0, 0, 0), (0.5, 0.5)),
        ((3, 0, 8, 0), (0.5, 0.5)),  # l1 was never drawn
        ((0, 3, 0, 8), (0.5, 0.5)),
        ((6, 2, 8, 8), (0.25, 0.75)),  # 1/4 and 3/4 wrong
        ((6, 50, 8, 100), (1 / 3, 2 / 3)),  # 1/4 and 1/2
        ((8, 5, 8, 8), (0.0, 1.0)),
        ((8, 8, 8, 8), (0.5, 0.5)),  # nobody was ever fooled
    ],
)
def test_the_probabilities_of_eat(so_far: tuple[float, ...], truth: tuple[float, float]) -> None:
    assert EAT().probabilities(counts(*so_far)).tolist() == pytest.approx(truth)


def test_eat_counts_who_was_robust_and_who_was_attacked() -> None:
    drawn = {}
    for seed in range(20):
        chosen = EAT().chosen(counts(0, 0, 0, 0), torch.Generator().manual_seed(seed))
        terms = called(chosen)
        drawn[tuple(terms.counts.tolist())] = terms.loss.item()
        assert terms.counts.dtype == torch.float64 and chosen.counters == 4
    mean = (math.log(4 / 3) + math.log(4)) / 2
    assert drawn == {
        (1, 0, 2, 0): pytest.approx(mean),  # linf: one robust
        (0, 0, 0, 2): pytest.approx(mean),  # l1: nobody
    }


def test_eat_draws_by_the_counts_and_the_generator_alone() -> None:
    """Each draw replayed: l1 where the uniform number is past the probability of linf."""
    seen = []
    for seed in range(400):
        uniform = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        chosen = EAT().chosen(counts(6, 2, 8, 8), torch.Generator().manual_seed(seed))
        seen.append(called(chosen).counts[3].item() == 2)
        assert seen[-1] == (uniform.item() >= 0.25)
    assert abs(sum(seen) / 400 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 400)


def test_sat_draws_all_norms_alike() -> None:
    """Each draw replayed, over the attack's norms and over two of them."""
    losses = {"linf": "linf", "l2": "l2", "l1": "l1"}
    of_norm = {
        norm: called(SAT((norm,)).chosen(counts(), torch.Generator())).logits for norm in losses
    }
    drawn = {norm: 0 for norm in losses}
    for seed in range(300):
        point = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for objective, norms in ((SAT(), ("linf", "l2", "l1")), (SAT(("l1", "l2")), ("l1", "l2"))):
            norm = norms[int(point * len(norms))]
            chosen = objective.chosen(counts(), torch.Generator().manual_seed(seed))
            assert torch.equal(called(chosen).logits, of_norm[norm])
        drawn[("linf", "l2", "l1")[int(point * 3)]] += 1
    assert all(abs(count - 100) < 4 * math.sqrt(300 * 2 / 9) for count in drawn.values())


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
    torch.manual_seed(0)
    vit = network == "vit"
    model = (tiny("vit_tiny_patch16_224", num_classes=4) if vit else WithBN()).double().train()
    batch = Batch(images(6, 3, 8, 8).double(), torch.arange(6) % 4, torch.arange(6))
    attack = PGD(eps=0.05, step_size=None, steps=3, loss="kl")
    source = torch.Generator().manual_seed(0)
    x_adv = attack(model, batch.x, batch.y, source, sample_ids=batch.ids)
    twin = (tiny("vit_tiny_patch16_224", num_classes=4) if vit else WithBN()).double().train()
    twin.load_state_dict(model.state_dict())
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
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EAT(("linf",)), "`norms`: expected 2 or more different norms, got ('linf',)"),
        (
            lambda: EAT(("l1", "l1")),
            "`norms`: expected 2 or more different norms, got ('l1', 'l1')",
        ),
        (lambda: SAT(()), "`norms`: expected 1 or more different norms, got ()"),
        (lambda: AVG(("linf", "l3")), "`norms`: expected any of: l1, l2, linf, got 'l3'"),
        (lambda: TRADES(beta=-1), "`beta`: expected a number >= 0, got -1"),
    ],
)
def test_bad_fields_are_named(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        make()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("objective", [EAT(), SAT(), SAT(("linf", "l1")), AVG(), AVG(("l1",))])
def test_a_single_norm_attack_is_refused(objective: Objective) -> None:
    with pytest.raises(ArgumentError, match="`attack`: expected multi_apgd beside objective"):
        objective.check(PGD())
    with pytest.raises(ArgumentError, match="`attack`: expected one beside objective .*, got None"):
        objective.check(None)


def test_a_norm_without_a_radius_is_refused() -> None:
    attack = replace(REAL, norms=None, eps=None).under(ThreatModel())
    for objective in (EAT(), SAT(("l1",)), AVG(("linf", "l1"))):
        with pytest.raises(ArgumentError, match="got 'l1', which has no eps"):
            objective.check(attack)
    AVG().check(attack)
    TRADES().check(PGD())
    with pytest.raises(ArgumentError, match="`attack`: expected one beside objective trades"):
        TRADES().check(None)
