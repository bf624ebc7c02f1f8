"""Any timm architecture as a classifier of images in [0, 1]: built, and opened from a file."""

import contextlib
import difflib
import importlib
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants
from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]
from timm.models import _hub
from torch import nn

from roli_fast import zoo
from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.files import naming
from roli_fast.models.classifier import TIMM_SOURCES, Classifier, Model, head_name
from roli_fast.models.normalization import choose_normalization
from roli_fast.models.weights import load_backbone, read_card, read_state_dict, read_weights
from roli_fast.models.wrap import foreign_network, hand_in
from roli_fast.seeds import derive_seed

logger = logging.getLogger("roli_fast.models")

ELSEWHERE = {
    "num_classes": "The data says how many there are.",
    "pretrained": "Set model.pretrained.",
    "checkpoint_path": "Set model.weights.",
}
"""Argument of `timm.create_model` that is no option here -> what takes its place."""

AS_IT_IS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""The normalisation of a network that does not tell one: it takes images in [0, 1]."""


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
    config, published = _from_source(_fitting_options(config))
    path = _local_weights(config)
    card = read_card(path) if path else {}
    if "tuning" in card:
        got = f"'{config.weights}' with {card['tuning']}"
        fix = "Load it with models.load; peft.merge and save_model make a plain file of a LoRA "
        fix += "model."
        raise CheckpointError(describe("weights", "the weights of a plain backbone", got, fix))
    if with_head:
        _check_head(config, card, num_classes, published)
    backbone = _network(config, num_classes, seed, published, with_head=with_head and path is None)
    file = read_weights(path) if path else None
    mean, std = choose_normalization(config, file, getattr(backbone, "pretrained_cfg", AS_IT_IS))
    model = Classifier(backbone, config, mean, std)
    if image_size is not None:
        _check_image_size(model, config.resize or image_size)
    if file:
        load_backbone(model, file, with_head=with_head)
    return model


def load(path: str | Path, *, network: nn.Module | None = None) -> Classifier:
    """A classifier that training saved, head and normalisation included.

    Args:
        path: a best.safetensors or last.safetensors of a run.
        network: the architecture, where the run was given a module: any object of the same class
            and sizes; its weights and head do not matter, and it is left as it is.

    Returns:
        The model in eval mode: images (B, 3, H, W) in [0, 1] -> logits (B, C). `card["classes"]`
        names the outputs.

    Raises:
        CheckpointError: the file is missing, damaged, or was not written by this package.
    """
    card = read_card(path)
    if not card:
        read_state_dict(path)  # a missing or damaged file is told as such
        fix = "For other files: create(Model(name, weights=path), num_classes=C)."
        expected = "a model file with roli_fast's card"
        raise CheckpointError(describe("path", expected, f"'{path}'", fix))
    with naming(path, CheckpointError, "path", "a card that describes a model of this version"):
        mean, std = tuple(card["mean"]), tuple(card["std"])
        config = Model(card["name"], options=card["options"], mean=mean, std=std)
        config = replace(config, resize=card["resize"], head=card.get("head"))
        if network is not None:
            config = replace(config, name=hand_in(network).name)
        model = create(config, num_classes=card["num_classes"])
        model.card["classes"], model.image_size = card["classes"], card.get("image_size")
        if "tuning" in card:  # peft stands above models, and loads for the files that need it
            importlib.import_module("roli_fast.peft").rebuild(model, card["tuning"])
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
    config, _ = _from_source(_fitting_options(config))
    path = _local_weights(config)
    if path is None:
        raise CheckpointError(describe("weights", "a weight file", config.weights))
    file = read_weights(path)
    head = head_name(_network(replace(config, weights=None), 1, seed=0))
    weight = file.state.get(f"{head}.weight")
    if weight is None:
        fix = "A backbone alone classifies nothing: train a head first."
        raise CheckpointError(describe("weights", f"a file with {head}.weight", f"'{path}'", fix))
    model = create(config, num_classes=len(weight), image_size=image_size)
    load_backbone(model, file, with_head=True)
    return model.eval()


def trained_classes(config: Model) -> tuple[str, ...]:
    """What the outputs of the weight file's head are called; empty where it does not say."""
    path = _local_weights(config)
    return tuple(read_card(path).get("classes", ())) if path else ()


def published_outputs(config: Model) -> int | None:
    """How many outputs the head of timm's own weights has, 0 without a head; None where none are
    asked for."""
    if not config.pretrained:
        return None
    config, published = _from_source(config)
    if published is None:
        own = timm.models.get_pretrained_cfg(config.name)
        published = own.to_dict() if own else {}
    return published.get("num_classes")


@cache
def imagenet_names() -> list[tuple[str, ...]]:
    """What the outputs of a classifier of ImageNet's 1,000 classes are called: the synset, which
    ImageNet's folders have ("n01440764"), then the words for it ("tench")."""
    info = ImageNetInfo()
    words = (info.index_to_description(i, detailed=False).split(", ") for i in range(1000))
    return [(name, *own) for name, own in zip(info.label_names(), words, strict=True)]


def _fitting_options(config: Model) -> Model:
    """With the options without which a file of the zoo does not fit its architecture."""
    entry = zoo.named(config.weights) if config.weights else None
    return replace(config, options={**entry.options, **config.options}) if entry else config


def _from_source(config: Model) -> tuple[Model, dict[str, Any] | None]:
    """The architecture and options that hf-hub:owner/name or local-dir:FOLDER stands for, and how
    timm describes its weights; any other configuration as it is, and None."""
    if not config.name.startswith(TIMM_SOURCES):
        return config, None
    source, _, place = config.name.partition(":")
    reader = f"load_model_config_from_{'hf' if source == 'hf-hub' else 'path'}"
    try:
        with _hub_within_seconds() if source == "hf-hub" else contextlib.nullcontext():
            published, name, options = getattr(_hub, reader)(place)
    except Exception as error:  # whatever the hub's client, or a damaged file, makes timm raise
        expected = "a repository or folder with timm's config.json"
        got = f"{config.name} ({_first_line(error)})"
        raise ArgumentError(describe("model.name", expected, got)) from error
    return replace(config, name=name, options={**options, **config.options}), published


def _check_head(
    config: Model, card: dict[str, Any], num_classes: int, published: dict[str, Any] | None
) -> None:
    """timm puts a random head on weights of another number of classes, and tells nobody; a file of
    ours fits a model of other options (another activation, say) without a word."""
    outputs = published.get("num_classes") if published else published_outputs(config)
    if config.pretrained and outputs is not None and outputs != num_classes:
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
    if config.weights.startswith(zoo.PREFIX):
        expected = zoo.find(config.weights.removeprefix(zoo.PREFIX)).architecture
        if expected != config.name.split(".")[0]:
            got = f"{config.name} with weights of {expected} ({config.weights})"
            fix = "Set model.name, or choose another file: `python -m roli_fast.zoo list`."
            raise ArgumentError(describe("model.name", expected, got, fix))
    return zoo.local_file(config.weights)


def _network(
    config: Model,
    num_classes: int,
    seed: int,
    published: dict[str, Any] | None = None,
    *,
    with_head: bool = False,
) -> nn.Module:
    """The network without its file's weights; what is no timm name may keep its own head."""
    if config.foreign:
        return foreign_network(config, num_classes, seed=seed, with_head=with_head)
    return _timm_model(config, num_classes, seed, published)


def _timm_model(
    config: Model, num_classes: int, seed: int, published: dict[str, Any] | None
) -> nn.Module:
    if not timm.is_model(config.name.split(".")[0]):
        near = difflib.get_close_matches(config.name, timm.list_models(), n=5)
        fix = f"Similar: {', '.join(near)}." if near else ""
        expected = "a timm architecture (`timm.list_models()`)"
        raise ArgumentError(describe("model.name", expected, repr(config.name), fix))
    for name in config.options.keys() & ELSEWHERE:
        field, value = f"model.options.{name}", config.options[name]
        raise ArgumentError(describe(field, "nothing", value, ELSEWHERE[name]))
    with torch.random.fork_rng(devices=[]):
        # the CPU's generator alone: torch.manual_seed would reseed every GPU's too, for good
        torch.default_generator.manual_seed(derive_seed(seed, "model"))
        try:
            with _hub_within_seconds() if config.pretrained else contextlib.nullcontext():
                return timm.create_model(
                    config.name,
                    pretrained=config.pretrained,
                    pretrained_cfg=published,
                    num_classes=num_classes,
                    **config.options,
                )
        except Exception as error:  # whatever a constructor makes of wrong options
            raise _not_built(config, error) from error


def _not_built(config: Model, error: Exception) -> ArgumentError:
    text = _first_line(error)
    if config.pretrained and not isinstance(error, TypeError):
        expected = f"weights of {config.name} that timm can download"
        fix = "Pass a local file as model.weights where there is no network."
        return ArgumentError(describe("model.pretrained", expected, text, fix))
    fix = ""
    if "'img_size'" in text:
        fix = f"{config.name} is built for no particular size: leave img_size out; data.image_size "
        fix += "or model.resize set the size of the images."
    expected = f"options that timm's {config.name} can be built with"
    return ArgumentError(
        describe("model.options", expected, f"{dict(config.options)} ({text})", fix)
    )


@contextlib.contextmanager
def _hub_within_seconds() -> Iterator[None]:
    """Within, timm takes published weights from the cache where the hub gives no answer: its client
    would try again for a minute and more.

    Raises:
        OSError: they were needed, and are not in the cache.
    """
    reason, before = "", constants.HF_HUB_OFFLINE
    try:
        urllib.request.build_opener().open(constants.ENDPOINT, timeout=5).close()
    except urllib.error.HTTPError as error:  # an answer
        error.close()
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    constants.HF_HUB_OFFLINE = before or bool(reason)
    try:
        yield
    except OSError as error:  # what the hub's client raises
        if reason:
            raise OSError(f"no answer from {constants.ENDPOINT} ({reason})") from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = before


def _first_line(error: Exception) -> str:
    """The error's first line, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_image_size(model: Classifier, size: int) -> None:
    """One image goes through: cheaper than a table of what each architecture accepts."""
    draw = torch.Generator().manual_seed(0)
    try:
        model.check_features(torch.rand(1, len(model.card["mean"]), size, size, generator=draw))
        model.image_size = size
    except (AssertionError, RuntimeError, ValueError) as error:
        fix = "Set data.image_size to the model's size, or model.resize to resize inside the "
        fix += "model, or model.options {img_size: ...} to build the model for this size."
        expected = f"images that {model.config.name} takes"
        got = f"{size}x{size} ({_first_line(error)})"
        raise ArgumentError(describe("image_size", expected, got, fix)) from error
