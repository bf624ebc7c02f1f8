"""Pre-activation ResNets for images of 32x32, registered so that timm builds them by name.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv:1603.05027; wide ones:
Zagoruyko & Komodakis, BMVC 2016, arXiv:1605.07146. The stem is a 3x3 convolution, nothing pools
before the end, and BN and an activation close the last stage. They are the networks of the
multi-norm papers (E-AT, RAMP); tensors have the names that their checkpoints of PreAct ResNet-18
use (conv1, layer1.0.bn1, layer2.0.shortcut.0, bn, linear).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from roli_fast.errors import ArgumentError, check_choice, describe

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,  # beta 1
}
"""Name -> what makes one. Softplus, log(1 + exp(x)), is smooth: attacks find better gradients."""

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
"""Channel means and standard deviations of CIFAR-10's training images."""


class PreActBlock(nn.Module):
    """x + conv(act(bn(conv(act(bn(x)))))), where the shapes differ with a 1x1 convolution of
    act(bn(x)) in the place of x. Convolutions are 3x3; the first has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.bn1, self.act1 = nn.BatchNorm2d(inputs), ACTIVATIONS[activation]()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(outputs), ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        ready = self.act1(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(ready)
        return self.conv2(self.act2(self.bn2(self.conv1(ready)))) + kept


class PreActResNet(nn.Module):
    """Images (B, in_chans, H, W) -> logits (B, num_classes), with the interface of timm's models.

    Args:
        num_classes: outputs of the head; 0 gives the features.
        in_chans: channels of the images.
        widths: channels of each stage; the first keeps the size of its input, each other halves it.
        depths: blocks of each stage.
        stem_width: channels behind the first convolution.
        activation: "softplus", "relu" or "silu".
    """

    def __init__(  # noqa: PLR0913 - the options of an architecture
        self,
        num_classes: int = 10,
        *,
        in_chans: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        stem_width: int = 64,
        activation: str = "softplus",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, tuple(ACTIVATIONS))
        if not widths or len(widths) != len(depths) or min([*widths, *depths]) < 1:
            expected = f"{len(depths)} numbers >= 1, as many as depths has ({tuple(depths)})"
            raise ArgumentError(describe("widths", expected, tuple(widths)))
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, widths[-1]
        self.conv1 = nn.Conv2d(in_chans, stem_width, 3, padding=1, bias=False)
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        inputs = stem_width
        for name, width, depth in zip(self.stages, widths, depths, strict=True):
            stride = 1 if name == "layer1" else 2
            first = PreActBlock(inputs, width, stride, activation)
            others = (PreActBlock(width, width, 1, activation) for _ in range(depth - 1))
            self.add_module(name, nn.Sequential(first, *others))
            inputs = width
        self.bn, self.act = nn.BatchNorm2d(inputs), ACTIVATIONS[activation]()
        self.linear = _head(inputs, num_classes)
        self.pretrained_cfg: dict[str, Any] = {
            "architecture": "",
            "num_classes": 10,
            "input_size": (in_chans, 32, 32),
            "mean": CIFAR_MEAN,
            "std": CIFAR_STD,
            "first_conv": "conv1",
            "classifier": "linear",
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last maps, behind BN and activation: (B, widths[-1], H', W')."""
        x = self.conv1(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.act(self.bn(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean over positions, and with `pre_logits` no more than that; else the logits."""
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.linear(pooled)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes`; `global_pool` is timm's, and the mean is the only one."""
        self.num_classes = num_classes
        like = self.bn.weight
        self.linear = _head(self.num_features, num_classes).to(like.device, like.dtype)


def _head(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()


def register(name: str, note: str, build: Callable[..., nn.Module]) -> None:
    """Give timm an entry point `name` that calls `build` with the options."""

    def entry_point(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise RuntimeError(f"timm has no published weights of {name}")
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(key, None)  # timm hands these to every entry point
        model: Any = build(**options)
        model.pretrained_cfg["architecture"] = name
        return model

    entry_point.__name__, entry_point.__doc__ = name, note
    register_model(entry_point)


def _wide(depth: int, factor: int) -> Callable[..., nn.Module]:
    widths = (16 * factor, 32 * factor, 64 * factor)
    depths = ((depth - 4) // 6,) * 3
    own: dict[str, Any] = {"widths": widths, "depths": depths, "stem_width": 16}
    return partial(PreActResNet, activation="relu", **own)


register("preact_resnet18", "The network of E-AT's and RAMP's CIFAR-10 tables.", PreActResNet)
register("wide_resnet28_10_cifar", "WRN-28-10.", _wide(28, 10))
register("wide_resnet34_20_cifar", "WRN-34-20.", _wide(34, 20))
register("wide_resnet70_16_cifar", "WRN-70-16.", _wide(70, 16))
