"""What every registered objective must do."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from given_norms import REAL, WithBN, trained_on
from tiny_models import images, tiny, untouched
from torch import Tensor, nn
from torch.nn import functional
from waits import waits

from roli_fast.attacks import MultiAPGD
from roli_fast.configuration import Schema
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.threat import known_values
from roli_fast.train.experiment import COMPONENTS
from roli_fast.train.objectives import OBJECTIVES, TWINS, Objective, Terms, attach
from roli_fast.train.stage import Stage

SHORT = dataclasses.replace(REAL, steps=2)
MEASURED = {"linf": 0.5, "l2": 0.6, "l1": 0.1}


@pytest.fixture(params=OBJECTIVES.names())
def objective(request: pytest.FixtureRequest) -> Objective:
    return OBJECTIVES[request.param]()


@pytest.fixture(params=["vit", "bn"])
def model(request: pytest.FixtureRequest, objective: Objective) -> nn.Module:
    """As in a stage of `objective`."""
    torch.manual_seed(0)
    bn = request.param == "bn"
    model = WithBN() if bn else tiny("vit_tiny_patch16_224", num_classes=4)
    if isinstance(objective, TWINS) and not bn:
        pytest.skip("it needs BatchNorm")
    attach(model.train(), objective, 0)
    return model


def a_batch(order: list[int] | None = None) -> Batch:
    batch = Batch(images(6, 3, 8, 8), torch.arange(6) % 4, torch.arange(10, 16))
    return batch if order is None else Batch(*(tensor[order] for tensor in batch))


def step(objective: Objective, model: nn.Module, attack: Any = SHORT, **options: Any) -> Terms:
    return trained_on(objective, model, options.pop("batch", a_batch()), attack, **options)


def test_it_is_a_frozen_dataclass_with_usable_defaults(objective: Any) -> None:
    objective.check(SHORT)
    objective.check(MultiAPGD())
    kind = type(objective)
    assert dataclasses.is_dataclass(kind) and objective == kind()
    assert hash(objective) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.weight = 0.5


def test_a_configuration_names_it(objective: Objective) -> None:
    """And every field of it is written and read back."""
    schema = Schema(Stage, COMPONENTS)
    name = OBJECTIVES.name_of(type(objective))
    stage = schema.build({"objective": name}, [])
    assert stage.objective == objective
    assert schema.build(schema.to_tree(stage), []) == stage


def test_the_loss_is_a_finite_scalar_that_reaches_all_weights(
    objective: Objective, model: nn.Module
) -> None:
    terms = step(objective, model)
    assert terms.loss.shape == () and terms.loss.isfinite() and terms.loss.dtype == torch.float32
    assert terms.logits.shape == (6, 4) and not terms.logits.requires_grad
    assert (terms.counts is None) == (objective.counters == 0)
    if terms.counts is not None:
        assert terms.counts.shape == (objective.counters,) and terms.counts.any()
        assert terms.counts.dtype == torch.float64 and not terms.counts.requires_grad
    terms.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert sum(p.grad.abs().sum() for p in model.parameters() if p.grad is not None) > 0


def test_without_an_attack_it_trains_on_the_clean_images(
    objective: Objective, model: nn.Module
) -> None:
    batch = a_batch()
    terms = step(objective, model, None)
    assert terms.counts is None
    logits = model(batch.x)
    assert torch.allclose(terms.logits, logits, atol=1e-6)
    truth = functional.cross_entropy(logits, batch.y)
    assert terms.loss.item() == pytest.approx(truth.item(), rel=1e-6)


def test_the_model_is_left_as_it_was(objective: Objective, model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
            module.num_batches_tracked = None
    with untouched(model):
        step(objective, model)


def test_the_order_of_a_batch_plays_no_part(objective: Objective, model: nn.Module) -> None:
    """But for halves, within which it plays none."""
    order = [2, 0, 1, 4, 5, 3] if isinstance(objective, TWINS) else [3, 5, 0, 1, 4, 2]
    twin = copy.deepcopy(model)  # an update moves the statistics that the next attack sees
    first = step(objective, model)
    again = step(objective, twin, batch=a_batch(order))
    assert again.loss.item() == pytest.approx(first.loss.item(), rel=1e-4)
    assert torch.allclose(again.logits, first.logits[order], atol=1e-4)
    if first.counts is not None and again.counts is not None:
        assert torch.equal(again.counts, first.counts)


def test_bf16_is_near_fp32(objective: Objective, model: nn.Module) -> None:
    wide = step(objective, model)
    short = step(objective, model, engine=Engine(dtype=torch.bfloat16))
    assert short.loss.dtype == torch.float32
    assert short.loss.item() == pytest.approx(wide.loss.item(), rel=0.05)
    short.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_host_waits_for_nothing(objective: Objective, model: nn.Module) -> None:
    """But for the counts that an objective draws by, which are read once (`Tensor.tolist`)."""

    def run() -> Tensor:
        with known_values():
            return step(objective, model).loss

    run()  # fills caches
    assert waits(run) == []


def test_it_settles_once(objective: Objective) -> None:
    settled = objective.settled(MEASURED)
    assert not settled.needs_accuracies and settled.settled(MEASURED) == settled
    assert type(settled) is type(objective) and settled.counters == objective.counters
    if not objective.needs_accuracies:
        assert settled == objective


def test_named_in_place_of_another_it_has_its_own_defaults(objective: Objective) -> None:
    """Several have a field `norms`: what was said for one does not hold for the next."""
    name = OBJECTIVES.name_of(type(objective))
    other = "sat" if name == "eat" else "eat"
    before = {"objective": {"name": other, "norms": ["l2", "l1"]}}
    stage = Schema(Stage, COMPONENTS).build(before, [f"--objective={name}"])
    assert stage.objective == objective
