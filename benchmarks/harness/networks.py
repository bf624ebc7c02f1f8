"""The networks of the benchmarks, with random weights: time does not depend on them."""

from typing import Any

import torch
from torch import Tensor, nn

from harness.report import Options
from roli_fast.models import Classifier, Model, create

CLASSES = 100
SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_SWIN = {
    "img_size": 32,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (1, 1),
    "num_heads": (2, 2),
}
SMALL_RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
SMALL = {"vit": SMALL_VIT, "swin": SMALL_SWIN, "resnet18": SMALL_RESNET}


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers on 32x32 images: launches and steps weigh in it."""

    def __init__(self, channels: int = 3, classes: int = 10, size: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((channels, 1, 1), 0.25))
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (size // 4) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.body((x - self.mean) / self.std)


def network(name: str, options: Options, **changes: Any) -> nn.Module:
    """The same weights at each call. `changes` are options of timm's model.

    "cnn" is `SmallCNN`, "resnet18" the one for 32x32 images (3x3 stem, no pooling after it).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _made(name, options, changes)
    return model.to(options.device).eval()


def _made(name: str, options: Options, changes: dict[str, Any]) -> nn.Module:
    if name == "cnn":
        return SmallCNN()
    if options.quick:
        changes = {**SMALL[name.split("_")[0]], **changes}
    classes = 10 if name == "resnet18" else CLASSES
    model: Classifier = create(Model(name, options=changes), num_classes=classes)
    if name == "resnet18":
        backbone: Any = model.backbone
        backbone.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        backbone.maxpool = nn.Identity()
    return model


def images(name: str, batch: int, options: Options, size: int | None = None) -> tuple[Tensor, ...]:
    """(x (B, 3, H, W) in [0, 1], y (B,)), noise, of the size that `network` takes."""
    if size is None:
        size = 224 if "224" in name and not options.quick else 32
    x = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    y = torch.arange(batch) % 10
    return x.to(options.device), y.to(options.device)
