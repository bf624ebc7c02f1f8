"""What scaling the head does: exactly s and s^2 with residuals held fixed."""

import pytest
import torch
from networks import case
from tiny_models import untouched

from roli_fast.analysis import head_scale, head_scale_cost, one_step
from roli_fast.attacks import PGD
from roli_fast.errors import ArgumentError

TRAIN, TEST = slice(0, 4), slice(3, 6)
PGD2 = PGD(norm="linf", eps=0.05, bounds=(0.0, 1.0), steps=2)


def scaled(own, scale: float):
    for name in ("weight", "bias"):
        own.model.get_parameter(f"{own.head}.{name}").data *= scale
    return own


def test_with_residuals_held_fixed_it_is_s_and_s_squared() -> None:
    own = case("vit_tiny_patch16_224")
    scales, done = (0.1, 1.0, 10.0), []
    train, test = own.batches(TRAIN), own.batches(TEST)
    with untouched(own.model):
        rows = head_scale(
            own.model, train, test, scales, lr=0.1, attack=PGD2, after_batch=done.append
        )
    assert sum(done) == 2 * 3 * (4 + 3)
    one = rows[1]
    assert [row.scale for row in rows] == [0.1, 1.0, 10.0]
    assert one.fixed.features == pytest.approx(one.features, rel=1e-12)
    assert one.fixed.logits_F == pytest.approx(one.logits_F, rel=1e-12)
    for row in rows:
        assert row.fixed.features == pytest.approx(row.scale * one.features, rel=1e-9)
        assert row.fixed.logits_F == pytest.approx(row.scale**2 * one.logits_F, rel=1e-9)
        per_logit = row.fixed.features / row.fixed.logits_F
        assert per_logit == pytest.approx(one.features / one.logits_F / row.scale, rel=1e-9)


@pytest.mark.parametrize("attack", [None, PGD2])
def test_else_everything_is_that_of_the_scaled_model(attack: PGD | None) -> None:
    own = case("vit_tiny_patch16_224")
    (row,) = head_scale(
        own.model, own.batches(TRAIN), own.batches(TEST), (4.0,), lr=0.1, attack=attack, seed=5
    )
    twin = scaled(case("vit_tiny_patch16_224"), 4.0)
    truth = one_step(
        twin.model, own.batches(TRAIN), own.batches(TEST), lr=0.1, attack=attack, seed=5
    )
    assert row.features == pytest.approx(truth.size, rel=1e-12)
    assert row.logits_F == pytest.approx(float(truth.backbone_part.norm(dim=1).mean()), rel=1e-12)
    assert row.ft_ratio == pytest.approx(truth.ft_ratio, rel=1e-12)
    assert row.residual == pytest.approx(truth.residual, rel=1e-12)


def test_a_larger_head_has_a_larger_backbone_share() -> None:
    own = case("text")
    train, test = own.batches(TRAIN), own.batches(TEST)
    rows = head_scale(own.model, train, test, (0.01, 0.1, 1.0), head="out", names=own.names)
    ratios = [row.ft_ratio for row in rows]
    assert ratios == sorted(ratios) and ratios[0] < 1e-3


def test_its_cost_and_what_it_refuses() -> None:
    own = case("mlp")
    cost = head_scale_cost(own.model, 4, 3, 2)
    assert (cost.forwards, cost.weight_backwards, cost.jvps) == (4 + 2 * 2 * 7, 16, 12)
    assert head_scale_cost(own.model, 4, 3, 2, PGD2).input_backwards == 3 * 4 * 2
    with pytest.raises(ArgumentError, match="`scales`"):
        head_scale(own.model, own.batches(TRAIN), own.batches(TEST), (1.0, 0.0))
    with pytest.raises(ArgumentError, match="`train`"):
        head_scale(own.model, [], own.batches(TEST))
    assert torch.is_grad_enabled()
