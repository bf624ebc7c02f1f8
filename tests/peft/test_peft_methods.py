"""The trainable sets and modes of the single methods, and what `apply` refuses."""

from dataclasses import dataclass

import pytest
import torch
from tiny_models import images, tiny

from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier
from roli_fast.peft import METHODS, Full, Linear, Method, apply


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("vit_tiny_patch16_224", "backbone.head"),
        ("resnet18", "backbone.fc"),
        ("convnext_atto", "backbone.head.fc"),
        ("swin_tiny_patch4_window7_224", "backbone.head.fc"),
    ],
)
def test_linear_trains_the_head_alone(name: str, head: str) -> None:
    assert apply(tiny(name), Linear()) == [f"{head}.weight", f"{head}.bias"]


def test_full_trains_everything() -> None:
    model = tiny()
    assert apply(model, Full()) == [name for name, _ in model.named_parameters()]


def test_full_unfreezes_what_an_earlier_stage_froze() -> None:
    model = tiny()
    apply(model, Linear())
    apply(model, Full())
    assert all(p.requires_grad for p in model.parameters())


def test_modes() -> None:
    model = tiny("resnet18")
    Full().train_mode(model)
    assert all(module.training for module in model.modules())
    Linear().train_mode(model)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("method", "moves"), [(Linear(), False), (Full(), True)])
def test_batch_norm_statistics(method: Method, moves: bool) -> None:
    model = tiny("resnet18")
    apply(model, method)
    method.train_mode(model)
    model(images(4, 3, 32, 32))
    assert bool(model.state_dict()["backbone.bn1.running_mean"].any()) == moves


def test_the_registry_knows_them() -> None:
    assert METHODS["full"] is Full and METHODS["linear"] is Linear
    with pytest.raises(ArgumentError, match="`tuning`: expected one of: .*full.*linear.*'probe'"):
        METHODS["probe"]


@dataclass(frozen=True)
class Naming(Method):
    """Names what it was told to."""

    names: tuple[str, ...]

    def prepare(self, model: Classifier, generator: torch.Generator) -> list[str]:
        return list(self.names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "got none"),
        (("backbone.head.weight", "backbone.hed.bias"), r"got \['backbone.hed.bias'\]"),
    ],
)
def test_names_that_are_not_there_are_refused(names: tuple[str, ...], message: str) -> None:
    model = tiny()
    with pytest.raises(ArgumentError, match=message):
        apply(model, Naming(names))
    assert all(p.requires_grad for p in model.parameters())


def test_a_name_freezes_all_others() -> None:
    model = tiny()
    apply(model, Naming(("backbone.cls_token",)))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["backbone.cls_token"]
    model(images(2, 3, 8, 8)).sum().backward()
    assert isinstance(model.get_parameter("backbone.cls_token").grad, torch.Tensor)
