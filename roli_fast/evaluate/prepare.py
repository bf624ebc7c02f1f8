"""Reads data and opens the model, and finds what does not fit before anything is written."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from roli_fast.data import DataSource, ImageDataset, Splits
from roli_fast.data.inspection import inspect_images
from roli_fast.engine.input_gradient import Model, check_logits
from roli_fast.errors import ArgumentError, RoliFastError, describe
from roli_fast.evaluate.assessment import Assessment
from roli_fast.evaluate.classes import match_classes
from roli_fast.evaluate.identity import identity
from roli_fast.evaluate.samples import chosen
from roli_fast.evaluate.subject import Opened, open_model
from roli_fast.running.device import pick_device, pick_threads
from roli_fast.running.environment import packages
from roli_fast.running.ranks import Ranks


@dataclass(frozen=True)
class Prepared:
    """What is known before the folder is touched; `second` is the other data set's images, and
    `outputs` are the model's for the classes of the data."""

    splits: Splits
    dataset: ImageDataset
    second: ImageDataset | None
    opened: Opened
    outputs: tuple[int, ...]
    device: torch.device
    threads: int
    found: dict[str, Any]


def prepare(assessment: Assessment, ranks: Ranks, *, quiet: bool = True) -> Prepared:
    """Read the data and open the model, as far as that finds mistakes; writes nothing.

    All images that will be evaluated are decoded once.
    """
    device = pick_device(ranks.device(assessment.device))
    splits = _load(assessment.data, "data")
    dataset = chosen(assessment, splits)
    datasets, other = {"data": dataset}, None
    if assessment.ood is not None:
        other = _load(assessment.ood, "ood")
        datasets["ood"] = chosen(assessment, other, at_most=True)
    hashes = inspect_images(datasets, decode=True, quiet=quiet)
    size = dataset.image_size
    opened = open_model(assessment.model, num_classes=splits.num_classes, image_size=size)
    opened = replace(opened, model=_to(opened.model, device))
    dataset, outputs, notes = _matched(assessment, opened, dataset, splits, device)
    second = datasets.get("ood")
    if second is not None and other is not None:
        second, _, more = _matched(assessment, opened, second, other, device, field="ood")
        notes += [f"ood: {note}" for note in more]
    threads = _threads(opened.model, size, assessment)
    opened = replace(opened, notes=(*opened.notes, *notes))
    found = identity(assessment, datasets, hashes, opened)
    found["threads"] = threads
    found["device"] = str(device)
    found["packages"] = packages()
    return Prepared(splits, dataset, second, opened, outputs, device, threads, found)


def _load(source: DataSource, field: str) -> Splits:
    """The images of a field; what is wrong with them names the field."""
    try:
        return source.load()
    except RoliFastError as error:
        raise type(error)(f"{field}: {error}") from error


def _threads(model: Model, size: int, assessment: Assessment) -> int:
    if assessment.threads:
        return assessment.threads
    if not isinstance(model, nn.Module):
        return torch.get_num_threads()
    return pick_threads(model, size, assessment.batch_size)


def _to(model: Model, device: torch.device) -> Model:
    return model.to(device) if isinstance(model, nn.Module) else model


def _matched(  # noqa: PLR0913 - a model and a data set meet
    assessment: Assessment,
    opened: Opened,
    dataset: ImageDataset,
    splits: Splits,
    device: torch.device,
    *,
    field: str = "data",
) -> tuple[ImageDataset, tuple[int, ...], list[str]]:
    """The images with the outputs of the model as labels, the output of each class, and notes."""
    count = _outputs(opened, dataset, device)
    outputs, notes = match_classes(splits.classes, opened.classes, count, assessment.classes, field)
    labels = torch.tensor(outputs)[dataset.labels]
    return replace(dataset, labels=labels), outputs, notes


def _outputs(opened: Opened, dataset: ImageDataset, device: torch.device) -> int:
    """How many outputs the model has; one image goes through it, to see that the two fit."""
    x = dataset.batch(torch.tensor([0])).x.to(device)
    try:
        with torch.no_grad():
            logits: Any = opened.model(x)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "Set data.image_size (or model.resize) and data.channels to the model's."
        got = f"{type(error).__name__}: {words}"
        raise ArgumentError(
            describe("model", f"a model of images {tuple(x.shape[1:])}", got, fix)
        ) from error
    check_logits(logits, x)
    return logits.shape[1]
