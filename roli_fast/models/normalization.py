"""Which mean and standard deviation a network's images are normalised with.

A wrong choice loads without an error and costs accuracy unnoticed: timm's own values for a plain
ViT are 0.5, those of ARES and torchvision for the same network are ImageNet's. So the first source
that knows is taken, the log names it, and a guess is a warning.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from roli_fast import zoo
from roli_fast.models.classifier import Model
from roli_fast.models.layouts import Normalization
from roli_fast.models.weights import WeightFile

logger = logging.getLogger("roli_fast.models")

_FALLBACK = (0.5, 0.5, 0.5)


def choose_normalization(
    config: Model, file: WeightFile | None, own: Mapping[str, Any]
) -> Normalization:
    """Mean and standard deviation, each from the first that has it.

    The order: the user; the file's card; normalisation buffers in it; the zoo, by the name of the
    entry or of the file; the layout of the names, where all files of it agree; timm's values for
    the architecture. For another number of channels than those are for, their average.

    Args:
        config: the user's.
        file: the weight file that is loaded, if any.
        own: timm's `pretrained_cfg` of the architecture.
    """
    card = file.card if file else {}
    known, source = _known(file, config.weights or "") if file and not card else (None, "")
    mean = card.get("mean") or (known and known[0]) or own.get("mean") or _FALLBACK
    std = card.get("std") or (known and known[1]) or own.get("std") or _FALLBACK
    if file and known:
        used = tuple(config.mean or mean), tuple(config.std or std)
        _tell_known(file.path.name, used, known, source, own)
    elif file and not card and not (config.mean and config.std):
        text = f"{file.path.name} does not tell its normalisation; taking timm's: mean {mean}, "
        text += f"std {std}. Set model.mean and model.std if it was trained with another."
        _say(logging.WARNING, text)
    channels = config.options.get("in_chans", len(mean))
    if len(mean) != channels:  # of grey images, and of others that nobody knows the mean of
        mean, std = ([sum(values) / len(values)] * channels for values in (mean, std))
    return tuple(config.mean or mean), tuple(config.std or std)


def _tell_known(
    file: str, used: Normalization, known: Normalization, source: str, own: Mapping[str, Any]
) -> None:
    """Say what the images are normalised with, whether another value was known, and how the zoo's
    accuracies can be measured."""
    if used != known:
        text = f"{file}: normalised with {shown(used)}, as model.mean and model.std say; {source} "
        _say(logging.WARNING, f"{text}has {shown(known)}")
        return
    text = f"{file}: normalisation from {source}"
    if own.get("mean") and known != (tuple(own["mean"]), tuple(own["std"])):
        text += f", {shown(known)}; timm's {own.get('architecture')} has another"
    if entry := zoo.named(file):
        text += f". It came with {entry.reported}: `python -m roli_fast.zoo check {entry.name} "
        text += "--data FOLDER` measures that"
    _say(logging.INFO, text)


def shown(normalization: Normalization) -> str:
    """In words, "mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5"."""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in normalization)
    return f"mean {mean} and std {std}"


def _known(file: WeightFile, weights: str) -> tuple[Normalization | None, str]:
    """The normalisation that goes with the file, and who says so."""
    if file.normalization:
        return file.normalization, "its own buffers"
    entry = zoo.named(weights)
    if entry:
        return (entry.mean, entry.std), f"the zoo's {entry.name}"
    return file.layout.normalization, file.layout.name


@cache
def _say(level: int, text: str) -> None:
    """Log once: a run builds the same model many times."""
    logger.log(level, text)
