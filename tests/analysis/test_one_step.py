"""One gradient and one Jacobian product give what the explicit kernels do, and predict a step."""

import math

import pytest
import torch
from explicit import close, jacobians
from networks import KINDS, Case, case
from tiny_models import images, tiny, untouched
from torch import Tensor
from torch.nn import functional

from roli_fast import peft
from roli_fast.analysis import (
    actual_change,
    first_update,
    head_scale,
    one_step,
)
from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError
from roli_fast.seeds import derived_generator
from roli_fast.train.optim import Optimizer

TRAIN, TEST = slice(0, 4), slice(3, 6)
LR = 0.01
PGD2 = PGD(norm="linf", eps=0.05, bounds=(0.0, 1.0), steps=2)


def residual(logits: Tensor, y: Tensor) -> Tensor:
    return functional.one_hot(y, logits.shape[1]) - logits.softmax(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_free_way_is_the_explicit_one(kind: str) -> None:
    own = case(kind)
    with untouched(own.model):
        found = one_step(own.view, own.batches(TRAIN), own.batches(TEST), names=own.names, lr=LR)
    train = jacobians(own.model, own.head, own.names, own.x[TRAIN])
    test = jacobians(own.model, own.head, own.names, own.x[TEST])
    delta = residual(train.logits, own.y[TRAIN]).flatten()
    moved = test.of_features @ train.of_logits.t() @ delta  # Theta^phi V^T delta
    backbone = test.of_logits @ train.of_logits.t() @ delta  # F delta
    head = test.of_head @ train.of_head.t() @ delta  # P delta
    rows, classes = test.logits.shape
    assert close(found.features, LR * moved.view(rows, -1))
    assert close(found.backbone_part, LR * backbone.view(rows, classes))
    assert close(found.head_part, LR * head.view(rows, classes))
    assert torch.equal(found.logits, found.backbone_part + found.head_part)
    both = (backbone + head).view(rows, classes).norm(dim=1)
    ratio = (backbone.view(rows, classes).norm(dim=1) / both).mean()
    assert found.ft_ratio == pytest.approx(float(ratio), rel=1e-10)
    size = residual(train.logits, own.y[TRAIN]).norm(dim=1).mean()
    assert found.residual == pytest.approx(float(size), rel=1e-10)
    assert (found.train_images, found.lr) == (4, LR)


def test_the_step_is_the_optimisers() -> None:
    """The tangent is what plain SGD on the summed loss does to the weights."""
    own = case("mlp")
    found = one_step(own.model, own.batches(TRAIN), own.batches(TEST), lr=LR)
    before = {name: p.detach().clone() for name, p in own.model.named_parameters()}
    functional.cross_entropy(own.model(own.x[TRAIN]), own.y[TRAIN], reduction="sum").backward()
    torch.optim.SGD(own.model.parameters(), lr=LR).step()
    after = dict(own.model.named_parameters())
    assert found.tangent.keys() == after.keys()
    for name, value in found.tangent.items():
        assert close(value, after[name].detach() - before[name])


def test_it_predicts_a_step_to_first_order() -> None:
    own = case("vit_tiny_patch16_224")
    errors = []
    for lr in (1e-3, 1e-4, 1e-5):
        found = one_step(own.model, own.batches(TRAIN), own.batches(TEST), lr=lr)
        with untouched(own.model):
            actual = actual_change(own.model, found.tangent, own.batches(TEST))
        errors.append(float((found.features - actual.features).norm() / actual.features.norm()))
        assert close(found.logits, actual.logits, 20 * lr / 1e-3)
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_under_attack_the_update_sees_the_attacked_images() -> None:
    own = case("vit_tiny_patch16_224")
    train = own.batches(TRAIN)
    found = one_step(own.model, train, own.batches(TEST), attack=PGD2, seed=7)
    own.model.eval()
    by_hand = []
    for batch in train:
        generator = derived_generator("evaluate", 7, PGD2.label)
        x = PGD2(own.model, batch.x, batch.y, generator, sample_ids=batch.ids)
        by_hand.append(batch._replace(x=x))
    again = one_step(own.model, by_hand, own.batches(TEST))
    assert torch.equal(found.features, again.features) and found.residual == again.residual
    clean = one_step(own.model, train, own.batches(TEST))
    assert found.residual > clean.residual


def test_the_attack_sees_the_model_as_it_is() -> None:
    """In fp32, also where the rest is computed in fp64."""
    model, x, y = tiny(), images(3, 3, 8, 8), torch.arange(3)
    batches = [Batch(x, y, torch.arange(3))]
    wide = one_step(model, batches, batches, attack=PGD2, dtype=torch.float64)
    generator = derived_generator("evaluate", 0, PGD2.label)
    x_adv = PGD2(model, x, y, generator, sample_ids=torch.arange(3))
    twin = tiny().double()
    by_hand = one_step(twin, [Batch(x_adv.double(), y, y)], [Batch(x.double(), y, y)])
    assert torch.equal(wide.features, by_hand.features)
    narrow = one_step(model, batches, batches, attack=PGD2)
    assert narrow.features.dtype == torch.float32 and close(narrow.features, wide.features, 1e-4)


def test_adamws_first_update_is_made_and_predicts() -> None:
    own = case("mlp")
    optimizer = Optimizer(lr=1e-4, weight_decay=0.1)
    with untouched(own.model):
        tangent = first_update(own.model, own.batches(TRAIN), optimizer.build)
    before = {name: p.detach().clone() for name, p in own.model.named_parameters()}
    functional.cross_entropy(own.model(own.x[TRAIN]), own.y[TRAIN]).backward()
    for name, parameter in own.model.named_parameters():
        assert parameter.grad is not None
        # the first moments are g and g^2 after their correction
        step = 1e-4 * parameter.grad / (parameter.grad.abs() + 1e-8)
        decay = 1e-4 * 0.1 * before[name] if parameter.ndim > 1 else 0.0
        assert close(tangent[name], -step - decay, 1e-9), name
    found = one_step(own.model, [], own.batches(TEST), tangent=tangent)
    actual = actual_change(own.model, tangent, own.batches(TEST))
    assert close(found.features, actual.features, 1e-3)
    assert close(found.logits, actual.logits, 1e-3)
    assert found.lr is None and found.train_images == 0 and math.isnan(found.residual)
    sgd = one_step(own.model, own.batches(TRAIN), own.batches(TEST))
    cosine = functional.cosine_similarity(sgd.features.flatten(), found.features.flatten(), dim=0)
    assert float(cosine) < 0.98  # it is another direction


def test_a_tangent_of_the_backbone_alone_leaves_the_head() -> None:
    own = case("mlp")
    tangent = {"body.0.weight": torch.ones(6, 5).double()}
    found = one_step(own.model, [], own.batches(TEST), tangent=tangent)
    assert not found.head_part.any() and found.backbone_part.any()
    truth = jacobians(own.model, "head", ["body.0.weight"], own.x[TEST])
    assert close(found.features.flatten(), truth.of_features.sum(1))


def test_what_trains() -> None:
    own = case("lora")
    train, test = own.batches(TRAIN), own.batches(TEST)
    with_head = [*own.names, f"{own.head}.weight", f"{own.head}.bias"]
    for name, parameter in own.model.named_parameters():
        parameter.requires_grad_(name in with_head)
    named = one_step(own.model, train, test, names=own.names)
    assert set(named.tangent) == set(with_head)
    assert torch.equal(one_step(own.model, train, test, names=with_head).logits, named.logits)
    assert torch.equal(one_step(own.model, train, test).logits, named.logits)
    for name, parameter in own.model.named_parameters():  # a probe: the head alone
        parameter.requires_grad_(name not in own.names and name in with_head)
    assert one_step(own.model, train, test).ft_ratio == 0
    own.model.requires_grad_(False)  # frozen to be used: all of it is meant
    every = one_step(own.model, train, test)
    assert len(every.tangent) == len(list(own.model.parameters()))
    assert not torch.equal(every.logits, named.logits)


def test_tuned_models_of_every_method_have_a_step() -> None:
    batches = [Batch(images(3, 3, 8, 8), torch.arange(3), torch.arange(3))]
    for method in (peft.Adapter(reduction=4), peft.Prompt(tokens=3), peft.Bias(), peft.Linear()):
        model = tiny()
        names = peft.apply(model, method)
        found = one_step(model, batches, batches, names=names, lr=1e-5)
        actual = actual_change(model, found.tangent, batches)
        assert close(found.logits, actual.logits, 0.02), method


def test_bad_calls_are_refused_by_name() -> None:
    own = case("mlp")
    train, test = own.batches(TRAIN), own.batches(TEST)
    wrong = {"body.0.weight": torch.ones(2)}
    calls = {
        "train": lambda: one_step(own.model, [], test),
        "names": lambda: one_step(own.model, train, test, names=["body.9.weight"]),
        "tangent": lambda: one_step(own.model, train, test, tangent=wrong),
        "scales": lambda: head_scale(own.model, train, test, (1.0, 0.0)),
    }
    with untouched(own.model):
        for name, call in calls.items():
            with pytest.raises(ArgumentError, match=f"`{name}`"):
                call()


def scaled(own: Case, scale: float) -> Case:
    for name in ("weight", "bias"):
        own.model.get_parameter(f"{own.head}.{name}").data *= scale
    return own


@pytest.mark.parametrize("attack", [None, PGD2])
def test_a_scaled_head_is_that_of_the_scaled_model(attack: PGD | None) -> None:
    """Each row is the step of a model whose head was scaled; the first grows with the scale."""
    own, options = case("vit_tiny_patch16_224"), {"lr": 0.1, "attack": attack, "seed": 5}
    train, test, done = own.batches(TRAIN), own.batches(TEST), list[int]()
    with untouched(own.model):
        rows = head_scale(own.model, train, test, (1e-3, 4.0), after_batch=done.append, **options)
    assert sum(done) == 2 * (4 + 3) and rows[0].ft_ratio < 1e-3 < rows[1].ft_ratio
    twin = scaled(case("vit_tiny_patch16_224"), 4.0)
    truth = one_step(twin.model, train, test, **options)
    assert rows[1].scale == 4 and rows[1].features == pytest.approx(truth.size, rel=1e-12)
    expected = float(truth.backbone_part.norm(dim=1).mean())
    assert rows[1].logits_F == pytest.approx(expected, rel=1e-12)
    assert rows[1].ft_ratio == pytest.approx(truth.ft_ratio, rel=1e-12)
    assert rows[1].residual == pytest.approx(truth.residual, rel=1e-12)
