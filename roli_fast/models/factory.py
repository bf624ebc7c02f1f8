"""Any timm architecture as a classifier of images in [0, 1]."""

import contextlib
import difflib
import importlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from roli_fast import zoo
from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.files import naming
from roli_fast.models.layers import Normalize, Resize
from roli_fast.models.normalization import choose_normalization
from roli_fast.models.options import check_options, first_line, hub_within_seconds, refusal
from roli_fast.models.weights import load_backbone, read_card, read_state_dict, read_weights
from roli_fast.seeds import derive_seed

logger = logging.getLogger("roli_fast.models")

EXTENSIONS = {"tuning": ("roli_fast.peft", "rebuild")}
"""Key of a card -> module and function that rebuild it on a plain classifier, before the weights
are loaded. Named and not imported: peft stands above models, and loads for the files that need
it."""


@dataclass(frozen=True)
class Model:
    """Which network, and where its weights come from.

    Args:
        name: timm architecture, "vit_base_patch16_224" say, or one of the CIFAR networks that are
            registered there: preact_resnet18, wide_resnet28_10_cifar, wide_resnet34_20_cifar,
            wide_resnet70_16_cifar.
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
    """

    name: str = "vit_tiny_patch16_224"
    weights: str | None = None
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.weights and self.pretrained:
            raise ArgumentError(
                describe("pretrained", "false where `weights` names a file", "true", "Choose one.")
            )


class Classifier(nn.Module):
    """resize -> normalise -> backbone with head. Images (B, 3, H, W) in [0, 1] -> logits (B, C).

    The number of channels is that of `mean`: three, or options["in_chans"].
    """

    def __init__(self, backbone: nn.Module, config: Model, mean: Any, std: Any) -> None:
        super().__init__()
        self.resize = Resize(config.resize) if config.resize else nn.Identity()
        self.normalize = Normalize(mean, std)
        self.backbone = backbone
        self.config = config
        self.head_sees_features: bool | None = None  # not known before an image went through
        self.card: dict[str, Any] = {
            "name": config.name,
            "options": dict(config.options),
            "mean": list(mean),
            "std": list(std),
            "resize": config.resize,
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(self.normalize(self.resize(x)))

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, (B, D).

        Raises:
            ArgumentError: the head on the features does not give the model's logits, as in VOLO,
                which adds those of a second head.
        """
        if self.head_sees_features is None:
            self.check_features(x[:1])
        self._check_one_head()
        return self._features(self.normalize(self.resize(x)))

    def _features(self, x: Tensor) -> Tensor:
        maps = self.backbone.forward_features(x)  # type: ignore[operator]
        return self.backbone.forward_head(maps, pre_logits=True)  # type: ignore[operator]

    def check_features(self, x: Tensor) -> None:
        """Note whether head(features(x)) are the logits of `x`, in eval mode: probes, tunings and
        analyses rely on it, and once for a network is enough."""
        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            with torch.no_grad():
                x = self.normalize(self.resize(x))
                logits, layer = self.backbone(x), self._classifier()
                if not isinstance(layer, nn.Linear):
                    return  # refused where a head is asked for
                try:
                    own = layer(self._features(x))
                except (AttributeError, TypeError, RuntimeError):  # no such way, another shape
                    own = logits[:, :0]
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
        head = self._classifier()
        for name, module in self.named_modules():
            if module is head:
                return name
        raise self._no_single_head(head)

    def _classifier(self) -> object:
        """timm's answer; some backbones have none."""
        return getattr(self.backbone, "get_classifier", lambda: None)()  # type: ignore[operator]

    @property
    def head(self) -> nn.Linear:
        """The linear layer from features to logits."""
        head = self.get_submodule(self.head_name)
        if not isinstance(head, nn.Linear):
            raise self._no_single_head(head)
        self._check_one_head()
        return head

    def _check_one_head(self) -> None:
        if self.head_sees_features is False:
            got = f"{self.config.name}, whose logits are not head(features)"
            raise ArgumentError(describe("model.name", "an architecture with one linear head", got))

    def _no_single_head(self, head: object) -> ArgumentError:
        got = f"{self.config.name} with {type(head).__name__}"
        return ArgumentError(describe("model.name", "an architecture with one linear head", got))


def create(
    config: Model,
    *,
    num_classes: int,
    seed: int = 0,
    image_size: int | None = None,
    with_head: bool = False,
) -> Classifier:
    """Build the classifier, with a fresh head for `num_classes`.

    Random initial values depend on `seed` alone; the global random state is left untouched.

    Args:
        config: architecture and weights.
        num_classes: outputs of the head.
        seed: seeds the initial values.
        image_size: height and width of the images it will get; checked against the architecture
            where given.
        with_head: take the head of the weight file, or timm's own, too; it has to have as many
            outputs.

    Raises:
        ArgumentError: unknown architecture, wrong options, fewer than one class, an image size that
            does not fit, published weights of another architecture or timm's with another head, or
            a download that failed.
        CheckpointError: a weight file that is missing, damaged or does not fit.
    """
    if num_classes < 1:
        raise ArgumentError(describe("num_classes", "an integer >= 1", num_classes))
    path = _local_weights(config)
    card = read_card(path) if path else {}
    if extended := [key for key in EXTENSIONS if key in card]:
        raise CheckpointError(_not_plain(config, {key: card[key] for key in extended}))
    if with_head:
        _check_head(config, card, num_classes)
    backbone = _timm_model(config, num_classes, seed)
    file = read_weights(path) if path else None
    mean, std = choose_normalization(
        config, file, config.weights, getattr(backbone, "pretrained_cfg", {})
    )
    model = Classifier(backbone, config, mean, std)
    if image_size is not None:
        _check_image_size(model, config.resize or image_size)
    if file:
        load_backbone(model, file, with_head=with_head)
    return model


def trained_classes(config: Model) -> tuple[str, ...]:
    """What the outputs of the weight file's head are called; empty where it does not say."""
    path = _local_weights(config)
    return tuple(read_card(path).get("classes", ())) if path else ()


def published_outputs(config: Model) -> int | None:
    """How many outputs the head of timm's own weights has, 0 without a head; None where none are
    asked for."""
    published = timm.models.get_pretrained_cfg(config.name) if config.pretrained else None
    return published.num_classes if published else None


def imagenet_synsets() -> tuple[str, ...]:
    """What ImageNet calls its folders, "n01440764" first: the outputs of a classifier of 1,000."""
    return tuple(ImageNetInfo().label_names())


def _check_head(config: Model, card: dict[str, Any], num_classes: int) -> None:
    """timm puts a random head on weights of another number of classes, and tells nobody; a file of
    ours fits a model of other options (another activation, say) without a word."""
    outputs = published_outputs(config)
    if outputs is not None and outputs != num_classes:
        got = f"a head of {outputs} for {num_classes} classes"
        fix = "Take a method with a fresh head (ranli), or name a classifier as model.weights."
        raise ArgumentError(
            describe("model.pretrained", "weights with a head for these classes", got, fix)
        )
    own = {"options": dict(config.options), "resize": config.resize}
    for name, value in own.items():
        if card and card.get(name) != value:
            text = "%s was trained with model.%s %s, and is used with %s"
            logger.warning(text, config.weights, name, card.get(name), value)


def _local_weights(config: Model) -> Path | None:
    """The weight file on this disk; a published one must be of the architecture that is built."""
    if not config.weights:
        return None
    entry = zoo.named(config.weights)
    by_name = config.weights.startswith(zoo.PREFIX)
    if entry and by_name and entry.architecture != config.name.split(".")[0]:
        got = f"{config.name} with weights of {entry.architecture} ({config.weights})"
        fix = "Set model.name, or choose another file: `python -m roli_fast.zoo list`."
        raise ArgumentError(describe("model.name", entry.architecture, got, fix))
    return zoo.local_file(config.weights)


def load(path: str | Path) -> Classifier:
    """A classifier that training saved, head and normalisation included.

    Args:
        path: a best.safetensors or last.safetensors of a run.

    Returns:
        The model in eval mode: images (B, 3, H, W) in [0, 1] -> logits (B, C). `card["classes"]`
        names the outputs.

    Raises:
        CheckpointError: the file is missing, damaged, or was not written by this package.
    """
    card = read_card(path)
    if not card:
        read_state_dict(path)  # a missing or damaged file is told as such
        raise CheckpointError(
            describe(
                "path",
                "a model file with roli_fast's card",
                f"'{path}'",
                "For other files: create(Model(name, weights=path), num_classes=C).",
            )
        )
    with naming(path, CheckpointError, "path", "a card that describes a model of this version"):
        config = Model(
            name=card["name"],
            options=card["options"],
            mean=tuple(card["mean"]),
            std=tuple(card["std"]),
            resize=card["resize"],
        )
        model = create(config, num_classes=card["num_classes"])
        model.card["classes"] = card["classes"]
        for key, (module, function) in EXTENSIONS.items():
            if key not in card:
                continue
            with naming(path, CheckpointError, key, "what this version can build"):
                getattr(importlib.import_module(module), function)(model, card[key])
        load_backbone(model, path, with_head=True)
    return model.eval()


def restore(config: Model, *, image_size: int | None = None) -> Classifier:
    """A classifier from a weight file that does not name its architecture, head included.

    Args:
        config: architecture and file; the number of outputs is that of the file's head.
        image_size: as for `create`.

    Returns:
        The model in eval mode.

    Raises:
        ArgumentError: as `create`.
        CheckpointError: no file, one without a head, or one that does not fit.
    """
    path = _local_weights(config)
    if path is None:
        raise CheckpointError(describe("weights", "a weight file", config.weights))
    file = read_weights(path)
    plain = _timm_model(replace(config, weights=None), 1, seed=0)
    head = Classifier(plain, config, [0.0], [1.0]).head_name.removeprefix("backbone.")
    weight = file.state.get(f"{head}.weight")
    if weight is None:
        fix = "A backbone alone classifies nothing: train a head first."
        raise CheckpointError(describe("weights", f"a file with {head}.weight", f"'{path}'", fix))
    model = create(config, num_classes=len(weight), image_size=image_size)
    load_backbone(model, file, with_head=True)
    return model.eval()


def _timm_model(config: Model, num_classes: int, seed: int) -> nn.Module:
    if not timm.is_model(config.name.split(".")[0]):
        near = difflib.get_close_matches(config.name, timm.list_models(), n=5)
        raise ArgumentError(
            describe(
                "model.name",
                "a timm architecture (`timm.list_models()`)",
                repr(config.name),
                f"Similar: {', '.join(near)}." if near else "",
            )
        )
    check_options(config.options)
    with torch.random.fork_rng(devices=[]):
        # the CPU's generator alone: torch.manual_seed would reseed every GPU's too, for good
        torch.default_generator.manual_seed(derive_seed(seed, "model"))
        try:
            with hub_within_seconds() if config.pretrained else contextlib.nullcontext():
                return timm.create_model(
                    config.name,
                    pretrained=config.pretrained,
                    num_classes=num_classes,
                    **config.options,
                )
        except Exception as error:  # whatever a constructor makes of wrong options
            raise _not_built(config, error) from error


def _not_built(config: Model, error: Exception) -> ArgumentError:
    if config.pretrained and not isinstance(error, TypeError):
        return ArgumentError(
            describe(
                "model.pretrained",
                f"weights of {config.name} that timm can download",
                first_line(error),
                "Pass a local file as model.weights where there is no network.",
            )
        )
    return refusal(config.name, config.options, error)


def _not_plain(config: Model, found: dict[str, Any]) -> str:
    return describe(
        "weights",
        "the weights of a plain backbone",
        f"'{config.weights}' with {found}",
        "Load it with models.load; peft.merge and save_model make a plain file of a LoRA model.",
    )


def _check_image_size(model: Classifier, size: int) -> None:
    """One image goes through: cheaper than a table of what each architecture accepts."""
    draw = torch.Generator().manual_seed(0)
    try:
        model.check_features(torch.rand(1, len(model.card["mean"]), size, size, generator=draw))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ArgumentError(
            describe(
                "image_size",
                f"images that {model.config.name} takes",
                f"{size}x{size} ({first_line(error)})",
                "Set data.image_size to the model's size, or model.resize to resize inside the "
                "model, or model.options {img_size: ...} to build the model for this size.",
            )
        ) from error
