"""Trainable parameters of the paper's two backbones, beside the head.

The numbers are those of the RoLI release's modules on Swin-B and ViT-B (its prompts have 10
tokens); its bias set contained the 63,544 entries of the relative position tables as well. The
networks are built without memory, on torch's meta device.
"""

import pytest
import torch

from roli_fast.models import Classifier, Model, create
from roli_fast.peft import METHODS, Adapter, Bias, LoRA, Method, Prompt, apply

CASES: list[tuple[Method, int, int]] = [
    (Bias(), 137_216, 102_912),
    (Bias(tables=True), 137_216 + 63_544, 102_912),
    (LoRA(), 770_048, 589_824),
    (Adapter(), 1_758_432, 1_779_840),
    (Prompt(), 120_320, 92_160),
    (Prompt(tokens=20), 240_640, 184_320),
    (Prompt(deep=False), 1_280, 7_680),
]


@pytest.mark.parametrize("number", [0, 1], ids=["swin-b", "vit-b"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: METHODS.name_of(type(case[0])))
def test_counts(case: tuple[Method, int, int], number: int) -> None:
    name = ("swin_base_patch4_window7_224", "vit_base_patch16_224")[number]
    method, *expected = case
    with torch.device("meta"):
        model: Classifier = create(Model(name), num_classes=10)
    names = apply(model, method)
    head = model.head.weight.numel() + model.head.bias.numel()
    count = sum(model.get_parameter(n).numel() for n in names)
    assert count - head == expected[number]
