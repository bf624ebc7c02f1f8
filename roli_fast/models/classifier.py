"""A network that takes images in [0, 1] and normalises inside, and where its head is."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.engine.compiled import logits_in
from roli_fast.errors import ArgumentError, describe
from roli_fast.models.layers import Normalize, Resize

TIMM_SOURCES = ("hf-hub:", "local-dir:")
"""Begin names that timm builds from a repository or folder of its own format."""


@dataclass(frozen=True)
class Model:
    """Which network, and where its weights come from.

    Args:
        name: timm architecture, "vit_base_patch16_224" say, or one of the CIFAR networks that are
            registered there: preact_resnet18, wide_resnet28_10_cifar, wide_resnet34_20_cifar,
            wide_resnet70_16_cifar. Or hf-hub:owner/name and local-dir:FOLDER, which timm reads, the
            first from the network. Or module:factory, a function that returns any torch network; it
            is called with `options`, and its head gets as many outputs as there are classes.
        weights: local .safetensors or .pth file of the backbone, or zoo:NAME for one that
            `python -m roli_fast.zoo get NAME` fetched; loaded strictly, its head is left aside.
            Null starts from random weights.
        pretrained: download timm's own weights of this architecture (asks the network).
        options: further arguments of `timm.create_model`, {img_size: 32, drop_path_rate: 0.1} say.
        mean: channel means of the normalisation; null takes what the weight file was trained with
            where that is known, else timm's own; the log says which.
        std: channel standard deviations; null likewise.
        resize: size to which images are resized inside the model; the attack sees the original
            pixels (RoLI does so for CIFAR). Null passes them as they are.
        head: path of the linear layer that gives the logits, "fc" say; null finds it.
    """

    name: str = "vit_tiny_patch16_224"
    weights: str | None = None
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        if self.weights and self.pretrained:
            raise ArgumentError(
                describe("pretrained", "false where `weights` names a file", "true", "Choose one.")
            )

    @property
    def has_weights(self) -> bool:
        """Whether it begins with trained weights, as those of somebody's module or function may
        be."""
        return bool(self.weights or self.pretrained or self.foreign)

    @property
    def foreign(self) -> bool:
        """Whether the name is no timm's, but one of a module or function of the user's."""
        return ":" in self.name and not self.name.startswith(TIMM_SOURCES)


class Classifier(nn.Module):
    """resize -> normalise -> backbone with head. Images (B, 3, H, W) in [0, 1] -> logits (B, C).

    The number of channels is that of `mean`: three, or options["in_chans"]. The backbone may return
    an object with `.logits`, as those of transformers do, or one logit z an image, that of the
    second of two classes: then the logits are [0, z].
    """

    def __init__(self, backbone: nn.Module, config: Model, mean: Any, std: Any) -> None:
        super().__init__()
        self.resize = Resize(config.resize) if config.resize else nn.Identity()
        self.normalize = Normalize(mean, std)
        self.backbone = backbone
        self.config = config
        head = _head_of(self)
        self._one_logit = isinstance(head, nn.Linear) and head.out_features == 1
        self.image_size: int | None = None  # of the images that it was checked with
        self.head_sees_features: bool | None = None  # not known before an image went through
        self.card: dict[str, Any] = {
            "name": config.name,
            "options": dict(config.options),
            "mean": list(mean),
            "std": list(std),
            "resize": config.resize,
            **({"head": config.head} if config.head else {}),
        }

    def forward(self, x: Tensor) -> Tensor:
        logits = logits_in(self.backbone(self.normalize(self.resize(x))))
        return torch.cat([torch.zeros_like(logits), logits], 1) if self._one_logit else logits

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, (B, D).

        Raises:
            ArgumentError: the head on the features does not give the model's logits, as in VOLO,
                which adds those of a second head.
        """
        if self.head_sees_features is None:
            self.check_features(x[:1])
        _check_one_head(self)
        return self._through_head(self.normalize(self.resize(x)))[0][-1]

    def _through_head(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the head was called with in one forward, and the backbone's logits."""
        seen: list[Tensor] = []
        head: Any = _head_of(self)
        hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            return seen, logits_in(self.backbone(x))
        finally:
            hook.remove()

    def check_features(self, x: Tensor) -> None:
        """Note whether head(features(x)) are the logits of `x`, in eval mode: probes, tunings and
        analyses rely on it, and once for a network is enough."""
        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            with torch.no_grad():
                x = self.normalize(self.resize(x))
                if not isinstance(_head_of(self), nn.Linear):
                    self.backbone(x)
                    return  # refused where a head is asked for
                seen, logits = self._through_head(x)
                own = self.head(seen[-1]) if seen else logits[:, :0]
                scale = float(logits.abs().max())
                self.head_sees_features = own.shape == logits.shape and torch.allclose(
                    own, logits, rtol=0, atol=1e-3 * scale, equal_nan=True
                )
        finally:
            for module, mode in modes:
                module.training = mode

    @property
    def head_name(self) -> str:
        """Module path of the head inside this model, "backbone.head" say."""
        return head_name(self)

    @property
    def head(self) -> nn.Linear:
        """The linear layer from features to logits."""
        return find_head(self)[1]


def backbone_of(model: nn.Module) -> nn.Module:
    """The network behind a classifier's normalisation; any other network itself."""
    return model.backbone if isinstance(model, Classifier) else model


def name_of(model: nn.Module) -> str:
    """What messages call a network: its architecture, or its class."""
    return model.config.name if isinstance(model, Classifier) else type(model).__name__


def head_name(model: nn.Module) -> str:
    """Path of the layer that gives the logits, in a classifier or in any plain network.

    It is the one that `Model.head` names; else timm's `get_classifier()`; else `fc`, `head`,
    `heads` or `classifier`, or the last linear layer in it; else the only linear layer.

    Raises:
        ArgumentError: there is none, or there are several; the linear layers are listed.
    """
    head = _head_of(model)
    for name, module in model.named_modules():
        if module is head:
            return name
    raise _no_single_head(model, type(head).__name__)


def find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Path and layer of the linear head of a classifier, or of any plain network.

    Raises:
        ArgumentError: it has no head that is linear and gives all of the logits.
    """
    name = head_name(model)
    head = model.get_submodule(name)
    if not isinstance(head, nn.Linear):
        raise _no_single_head(model, type(head).__name__)
    _check_one_head(model)
    return name, head


def _head_of(model: nn.Module) -> object:
    network = backbone_of(model)
    if isinstance(model, Classifier) and model.config.head:
        try:
            return network.get_submodule(model.config.head)
        except AttributeError:
            raise _no_single_head(model, f"no layer '{model.config.head}'") from None
    if callable(ask := getattr(network, "get_classifier", None)):
        return ask()
    for name in ("fc", "head", "heads", "classifier"):
        if (part := getattr(network, name, None)) is not None:
            last = _linear_layers(part) if isinstance(part, nn.Module) else []
            return last[-1][1] if last else part
    found = _linear_layers(network)
    return found[0][1] if len(found) == 1 else None


def _linear_layers(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]


def _check_one_head(model: nn.Module) -> None:
    if getattr(model, "head_sees_features", None) is False:
        raise _no_single_head(model, "logits that are not head(features)")


def _no_single_head(model: nn.Module, what: str) -> ArgumentError:
    layers = [f"{n} ({m.out_features})" for n, m in _linear_layers(backbone_of(model))]
    made = isinstance(model, Classifier)  # from a configuration, or by models.wrap
    fix = f"Name it as `head`, of its linear layers (outputs): {', '.join(layers[-8:]) or 'none'}."
    expected = "an architecture with one linear head"
    got = f"{name_of(model)} with {what}"
    return ArgumentError(describe("model.name" if made else "model", expected, got, fix))
