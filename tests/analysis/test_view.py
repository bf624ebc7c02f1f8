"""Which layer is the head, and what it is given."""

import pytest
import torch
from tiny_models import SIZES, SMALL, FixedLogits, Mixed, images, tiny, untouched
from torch import Tensor, nn

from roli_fast import peft
from roli_fast.analysis import LinearHead
from roli_fast.analysis.view import eval_mode
from roli_fast.errors import ArgumentError
from roli_fast.peft.lora import LoRA

NAMES = {
    "vit_tiny_patch16_224": "head",
    "resnet18": "fc",
    "convnext_atto": "head.fc",
    "swin_tiny_patch4_window7_224": "head.fc",
}


class Twice(nn.Module):
    """Uses its head in several ways that are no linear head."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.head = way, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        ways = {
            "twice": lambda: self.head(x) + self.head(-x),
            "never": lambda: x[:, :3],
            "tokens": lambda: self.head(x[:, None].expand(-1, 5, -1)).mean(1),
            "scaled": lambda: 2 * self.head(x),
            "keyword": lambda: self.head(input=x),
        }
        return ways[self.way]()


@pytest.mark.parametrize("name", SMALL)
def test_phi_is_what_the_head_is_given(name: str) -> None:
    model, x = tiny(name).eval(), images(3, 3, SIZES[name], SIZES[name])
    view = LinearHead.of(model)
    assert view.name == f"backbone.{NAMES[name]}" and view.layer is model.head
    phi, logits = view.features_and_logits(x)
    assert torch.equal(phi, model.features(x)) and torch.equal(logits, model(x))
    assert phi.shape == (3, view.dimensions) and logits.shape == (3, view.classes)
    assert LinearHead.of(model.backbone).name == NAMES[name]
    wrapped = LinearHead.of(nn.Sequential(model.normalize, model.backbone), f"1.{NAMES[name]}")
    assert torch.equal(wrapped.features(x), phi)


def test_a_linear_model_is_its_own_head_and_a_view_is_taken_as_it_is() -> None:
    layer, x = nn.Linear(4, 3), images(2, 4)
    view = LinearHead.of(layer)
    assert view.name == "" and view.features(x) is x and view.backbone() == {}
    assert LinearHead.of(view) is view
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    assert LinearHead.of(LinearHead.of(model, "1"), "0").layer is model[0]


def test_features_and_logits_leaves_nothing_behind() -> None:
    model = Mixed()
    with untouched(model):  # in train mode: the BN that trains keeps statistics, so eval
        with eval_mode(model):
            LinearHead.of(model, "head").features_and_logits(images(3, 3, 6, 6))
    assert not model.head._forward_hooks
    with pytest.raises(RuntimeError):
        LinearHead.of(model, "head").features_and_logits(images(3, 2, 6, 6))
    assert not model.head._forward_hooks


def test_the_backbone_is_all_but_the_head() -> None:
    model = tiny("resnet18")
    view = LinearHead.of(model)
    backbone = view.backbone()
    rest = set(dict(model.named_parameters())) - set(backbone)
    assert rest == {"backbone.fc.weight", "backbone.fc.bias"}
    names = ["backbone.layer4.0.conv1.weight", "backbone.conv1.weight"]
    assert list(view.backbone(names)) == names[::-1]  # in the model's order
    assert list(view.backbone(["backbone.fc.weight", names[1]])) == names[1:]
    assert view.backbone(["backbone.fc.weight"]) == view.backbone([]) == {}
    with pytest.raises(ArgumentError, match="names.*conv9"):
        view.backbone([names[0], "conv9"])


def test_models_without_a_linear_head() -> None:
    low_rank = tiny()
    peft.apply(low_rank, LoRA(rank=2), seed=0)
    for model, head, words in (
        (Mixed(), "fc", "'fc', where Mixed has a NoneType"),
        (Mixed(), "conv", "'conv', where Mixed has a Conv2d"),
        (low_rank, "backbone.blocks.0.attn.qkv", "a LoraLinear"),
        (FixedLogits(images(2, 4)), None, "got FixedLogits.*outputs.: none"),
    ):
        with pytest.raises(ArgumentError, match=words):
            LinearHead.of(model, head)


@pytest.mark.parametrize(
    ("way", "given"),
    [
        ("twice", r"\(2, 4\), \(2, 4\)"),
        ("never", "nothing"),
        ("tokens", r"\(2, 5, 4\)"),
        ("scaled", r"\(2, 4\)\. Pool"),
    ],
)
def test_a_head_that_is_used_otherwise_is_refused(way: str, given: str) -> None:
    words = rf"given \(2, 4\) once a forward, and whose output.*got 'head', given {given}"
    with pytest.raises(ArgumentError, match=words):
        LinearHead.of(Twice(way), "head").features(images(2, 4))


def test_a_head_called_by_keyword_is_seen() -> None:
    x = images(2, 4)
    assert LinearHead.of(Twice("keyword"), "head").features(x) is x
