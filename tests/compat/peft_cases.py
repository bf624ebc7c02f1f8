"""Models with LoRA, ours and PEFT's, for the tests beside this file."""

from typing import Any

import timm
import torch
from tiny_models import SIZES, SMALL, images, tiny
from torch import Tensor, nn

from roli_fast.models import Classifier, init_head
from roli_fast.peft import LoRA, LoraLinear, apply

VIT, SWIN = NETWORKS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
HEADS = {VIT: "head", SWIN: "head.fc"}


def stirred(name: str = VIT, **options: Any) -> Classifier:
    """A model with a head of its own and a LoRA that does something."""
    model = tiny(name)
    apply(model, LoRA(**{"rank": 2, "alpha": 3.0, "dropout": 0.25, **options}))
    init_head(model, "kaiming", seed=5)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            drawn = torch.randn(module.lora_b.shape, generator=generator)
            module.lora_b.data.copy_(drawn * 0.3)
    return model.eval()


def network(name: str = VIT) -> nn.Module:
    """timm's own, with the weights of `tiny(name)` and another head."""
    made = timm.create_model(name, num_classes=5, **SMALL[name])
    head = HEADS[name] + "."
    state = tiny(name).backbone.state_dict()
    made.load_state_dict({n: t for n, t in state.items() if not n.startswith(head)}, strict=False)
    return made.eval()


def normalised(model: Classifier, x: Tensor) -> Tensor:
    mean, std = (torch.tensor(model.card[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def pictures(name: str) -> Tensor:
    return images(4, 3, SIZES[name], SIZES[name], seed=3)


def theirs(hf: Any, name: str = VIT, **options: Any) -> Any:
    """A PEFT model of which every trained tensor is random."""
    config = {"r": 3, "lora_alpha": 7, "target_modules": ["qkv"], "modules_to_save": [HEADS[name]]}
    adapted = hf.get_peft_model(network(name), hf.LoraConfig(**{**config, **options}))
    generator = torch.Generator().manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapted.eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-5)


def differs(a: Tensor, b: Tensor) -> bool:
    return float((a - b).detach().abs().max()) > 1e-2
