"""PreAct ResNets for 32x32: their size, the network written out, and timm's interface."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny_models import images
from torch import Tensor
from torch.nn import functional

from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, PreActResNet, create, load, restore, save_model

NAME = "preact_resnet18"
TINY: dict[str, Any] = dict(widths=(4, 4, 8, 8), depths=(2, 1, 1, 1), stem_width=4)


def drawn(**options: Any) -> Classifier:
    """A tiny one with BN whose numbers are not those of the start."""
    config = Model(NAME, options={**TINY, **options})
    model = create(config, num_classes=5, image_size=32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1 and "linear" not in name:
                low = 0.5 if name.endswith(("running_var", "weight")) else -0.5
                tensor.uniform_(low, low + 1, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # counted by hand: stem, per stage the 3x3 convolutions, 1x1 shortcuts, BN, head
        (NAME, 11.172170),
        ("wide_resnet28_10_cifar", 36.479194),
        ("wide_resnet34_20_cifar", 184.53),
        ("wide_resnet70_16_cifar", 266.80),
    ],
)
def test_the_sizes_are_the_published_ones(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.006 if millions > 100 else 1e-7)


def plain(state: dict[str, Tensor], x: Tensor, stages: list[list[int]], act: Any) -> Tensor:
    """The network written out from a state dict: (block, stride) by (block, stride)."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / (var + 1e-5).sqrt()
        shift = state[f"{name}.bias"] - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = conv("conv1", x)
    for number, strides in enumerate(stages, 1):
        for index, stride in enumerate(strides):
            block = f"layer{number}.{index}"
            ready = act(norm(f"{block}.bn1", x))
            inner = act(norm(f"{block}.bn2", conv(f"{block}.conv1", ready, stride)))
            if f"{block}.shortcut.0.weight" in state:
                x = conv(f"{block}.shortcut.0", ready, stride)
            x = x + conv(f"{block}.conv2", inner)
    pooled = act(norm("bn", x)).flatten(2).mean(2)
    return pooled @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("activation", ["softplus", "relu", "silu"])
def test_against_the_network_written_out(activation: str) -> None:
    model, x = drawn(activation=activation).double(), images(3, 3, 32, 32).double()
    assert model.card["mean"] == [0.4914, 0.4822, 0.4465]  # CIFAR-10's
    assert model.card["std"] == [0.2471, 0.2435, 0.2616]
    mean, std = (torch.tensor(model.card[k]).double()[:, None, None] for k in ("mean", "std"))
    act = {
        "softplus": lambda t: torch.log(1 + torch.exp(t)),
        "relu": lambda t: t.clamp(min=0),
        "silu": lambda t: t * torch.sigmoid(t),
    }[activation]
    stages = [[1, 1], [2], [2], [2]]
    expected = plain(dict(model.backbone.state_dict()), (x - mean) / std, stages, act)
    # Normalize keeps its numbers in fp32 and widens them
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


def test_the_head_is_found_and_replaced() -> None:
    model, x = drawn(), images(2, 3, 32, 32)
    assert model.head_name == "backbone.linear" and model.head.out_features == 5
    backbone = model.backbone
    assert isinstance(backbone, PreActResNet)
    backbone.reset_classifier(7)
    assert model.head.out_features == backbone.num_classes == 7 and model(x).shape == (2, 7)
    backbone.reset_classifier(0)
    assert torch.equal(model(x), model.features(x))


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model, x = drawn(), images(2, 3, 32, 32)
    save_model(model, tmp_path / "m.safetensors", classes=tuple("abcde"))
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(again(x), model(x)) and again.card["classes"] == list("abcde")
    torch.save(model.backbone.state_dict(), tmp_path / "m.pth")
    others = restore(Model(NAME, weights=str(tmp_path / "m.pth"), options=TINY), image_size=32)
    assert torch.equal(others(x), model(x))
    config = Model(NAME, weights=str(tmp_path / "m.safetensors"), options=TINY)
    kept = create(config, num_classes=5, seed=1, with_head=True)
    assert torch.equal(kept.head.weight, model.head.weight)
    with pytest.raises(ValueError, match=r"linear\.weight has shape \(5, 8\), .*\(3, 8\)"):
        create(config, num_classes=3, with_head=True)


def test_wrong_options() -> None:
    for options, words in (
        ({"options": {"activation": "gelu"}}, "`activation`: expected 'relu' or .*'gelu'"),
        ({"options": {"widths": (4, 4)}}, "`widths`: expected 4 numbers >= 1"),
        ({"pretrained": True}, r"`model.pretrained`.*no published weights of preact"),
    ):
        with pytest.raises(ArgumentError, match=words):
            create(Model(NAME, **options), num_classes=3)
