"""The trainable sets of single methods, plain networks, and the paper's counts."""

import pytest
import timm
import torch
from tiny_models import METHOD_OPTIONS, SMALL, images, tiny
from torch import nn

from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, create
from roli_fast.peft import METHODS, Adapter, Bias, Full, Linear, LoRA, Method, Prompt, apply, merge

VIT = "vit_tiny_patch16_224"


def test_full_trains_everything_also_what_an_earlier_stage_froze() -> None:
    model = tiny()
    assert apply(model, Linear()) == ["backbone.head.weight", "backbone.head.bias"]
    assert apply(model, Full()) == [name for name, _ in model.named_parameters()]
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ArgumentError, match="`tuning`: expected one of: .*full.*linear.*'probe'"):
        METHODS["probe"]


@pytest.mark.parametrize("key", METHODS.names())
def test_a_plain_timm_network_is_tuned_as_a_classifier_is(key: str) -> None:
    """The same tensors under timm's own names, and the same logits."""
    method = METHODS[key](**METHOD_OPTIONS.get(key, {}))
    model, x = tiny(), images(2, 3, 8, 8)
    plain = timm.create_model(VIT, num_classes=5, **SMALL[VIT])
    plain.load_state_dict(model.backbone.state_dict())
    names = apply(plain, method, seed=3)
    assert [f"backbone.{name}" for name in names] == apply(model, method, seed=3)
    trained = [name for name, p in plain.named_parameters() if p.requires_grad]
    assert sorted(trained) == sorted(names)
    with torch.no_grad():
        expected = model.eval()(x)
        assert torch.equal(plain.eval()(model.normalize(x)), expected)
    if key == "lora":
        merged = merge(plain)
        assert type(merged) is type(plain)
        assert merged.state_dict().keys() == tiny().backbone.state_dict().keys()


def test_the_biases_of_a_vit_by_name() -> None:
    block = ["norm1.bias", "attn.qkv.bias", "attn.proj.bias", "norm2.bias"]
    block += ["mlp.fc1.bias", "mlp.fc2.bias"]
    expected = ["patch_embed.proj.bias", "norm.bias", "head.weight", "head.bias"]
    expected += [f"blocks.{i}.{name}" for i in range(2) for name in block]
    assert sorted(apply(tiny(), Bias())) == sorted(f"backbone.{name}" for name in expected)
    assert "backbone.layer1.0.bn1.bias" in apply(tiny("resnet18"), Bias())
    model = tiny()
    model.backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    model.backbone.get_classifier = lambda: model.backbone[1]  # type: ignore[index, assignment]
    with pytest.raises(ArgumentError, match="`tuning`.*has no biases"):
        apply(model, Bias())


COUNTS: list[tuple[Method, int, int]] = [
    (Bias(), 137_216, 102_912),
    (Bias(tables=True), 137_216 + 63_544, 102_912),
    (LoRA(), 770_048, 589_824),
    (Adapter(), 1_758_432, 1_779_840),
    (Prompt(), 120_320, 92_160),
    (Prompt(deep=False), 1_280, 7_680),
]


@pytest.mark.parametrize("number", [0, 1], ids=["swin-b", "vit-b"])
@pytest.mark.parametrize("case", COUNTS, ids=lambda case: METHODS.name_of(type(case[0])))
def test_trainable_parameters_of_the_papers_backbones(
    case: tuple[Method, int, int], number: int
) -> None:
    """Beside the head: the numbers of the RoLI release's modules on Swin-B and ViT-B (its prompts
    have 10 tokens); its bias set contained the 63,544 entries of the relative position tables as
    well. The networks are built without memory, on torch's meta device."""
    name = ("swin_base_patch4_window7_224", "vit_base_patch16_224")[number]
    method, *expected = case
    with torch.device("meta"):
        model: Classifier = create(Model(name), num_classes=10)
    names = apply(model, method)
    head = model.head.weight.numel() + model.head.bias.numel()
    count = sum(model.get_parameter(n).numel() for n in names)
    assert count - head == expected[number]
