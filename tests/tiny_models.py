"""Networks that run in a millisecond, and a record of what happens to a model."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from roli_fast.models import Classifier, Model, create

SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": dict(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2),
    "resnet18": dict(
        layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), stem_width=8, zero_init_last=False
    ),
    "convnext_atto": dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), conv_mlp=False),
    "swin_tiny_patch4_window7_224": dict(
        img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2)
    ),
}
"""timm architecture -> options that make it tiny."""

SIZES = {
    "vit_tiny_patch16_224": 8,
    "resnet18": 32,
    "convnext_atto": 32,
    "swin_tiny_patch4_window7_224": 16,
}
"""timm architecture -> image size of the tiny version."""

METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "lora": dict(rank=2),
    "lnlora": dict(rank=2),
    "adapter": dict(reduction=4),
    "prompt": dict(tokens=3),
}
"""Tuning method -> options that fit the tiny networks; defaults do for the others."""


def tiny(name: str = "vit_tiny_patch16_224", *, num_classes: int = 5, **options: Any) -> Classifier:
    """The tiny version of a timm architecture; `options` are those of `create`."""
    config = Model(name, options=SMALL[name], **options.pop("config", {}))
    return create(config, num_classes=num_classes, **options)


def images(*shape: int, seed: int = 0) -> Tensor:
    """Uniform pixels in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Mixed(nn.Module):
    """Convolution, BN, dropout and a linear head, (B, 3, 6, 6) -> (B, 4), with a mixed state.

    The model trains, its BN is in eval mode, one weight is frozen and one has a gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 5, 3)
            self.norm = nn.BatchNorm2d(5)
            self.drop = nn.Dropout(0.5)
            self.late_norm = nn.BatchNorm1d(20)
            self.head = nn.Linear(20, 4)
            self.conv.weight.grad = torch.randn_like(self.conv.weight)
        self.train()
        self.norm.eval()
        self.norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.drop(torch.tanh(self.norm(self.conv(x))))
        pooled = nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1)
        return self.head(self.late_norm(pooled))


class Counting(nn.Module):
    """Counts the forwards of a model, and the backwards that reach its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.forwards = 0
        self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        if x.requires_grad:
            x = x.clone()
            x.register_hook(self._count)
        return self.inner(x)

    def _count(self, _grad: Tensor) -> None:
        self.backwards += 1


class FixedLogits(nn.Module):
    """Logits w @ pixels + b: the gradient of every loss is known by hand."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.weight, self.bias)


def picture(model: nn.Module) -> dict[str, Any]:
    """Everything about a model and the process that an attack must leave as it was."""
    return {
        "training": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "global": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.get_default_dtype(),
        ),
        "rng": torch.get_rng_state(),
    }


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fails unless the body leaves `picture(model)` exactly as it was."""
    before = picture(model)
    try:
        yield
    finally:
        after = picture(model)
        for key, value in before.items():
            assert same(after[key], value), f"{key} changed"


def same(a: Any, b: Any) -> bool:
    """Equal, where tensors are compared bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


class Fused(TorchDispatchMode):
    """Counts forwards of torch's fused attention."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))
