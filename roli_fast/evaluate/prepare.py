"""Reads data and opens the model, and finds what does not fit before anything is written."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from roli_fast.data import DataSource, ImageDataset, Splits
from roli_fast.engine.input_gradient import Model, check_logits
from roli_fast.errors import ArgumentError, RoliFastError, describe
from roli_fast.evaluate.assessment import Assessment
from roli_fast.evaluate.identity import identity
from roli_fast.evaluate.samples import chosen
from roli_fast.evaluate.subject import Opened, open_model
from roli_fast.running.device import pick_device, pick_threads
from roli_fast.running.ranks import Ranks


@dataclass(frozen=True)
class Prepared:
    """What is known before the folder is touched; `second` is the other data set's images."""

    splits: Splits
    dataset: ImageDataset
    second: ImageDataset | None
    opened: Opened
    device: torch.device
    threads: int
    found: dict[str, Any]


def prepare(assessment: Assessment, ranks: Ranks) -> Prepared:
    """Read the data and open the model, as far as that finds mistakes; writes nothing."""
    device = pick_device(ranks.device(assessment.device))
    splits = _load(assessment.data, "data")
    dataset = chosen(assessment, splits)
    size = dataset.image_size
    opened = open_model(assessment.model, num_classes=splits.num_classes, image_size=size)
    threads = _threads(opened.model, size, assessment)
    opened = replace(opened, model=_to(opened.model, device))
    notes = _try_out(opened, dataset, splits, device)
    second = None
    if assessment.ood is not None:
        other = _load(assessment.ood, "ood")
        second = chosen(assessment, other, at_most=True)
        notes += [f"ood: {note}" for note in _try_out(opened, second, other, device)]
    opened = replace(opened, notes=(*opened.notes, *notes))
    found = identity(assessment, [dataset, *([second] if second else [])], opened)
    found["threads"] = threads
    found["device"] = str(device)
    return Prepared(splits, dataset, second, opened, device, threads, found)


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
    try:
        return pick_threads(model, size, assessment.batch_size)
    except (RuntimeError, ValueError, AssertionError, TypeError, AttributeError):  # as `_try_out`
        return torch.get_num_threads()


def _to(model: Model, device: torch.device) -> Model:
    return model.to(device) if isinstance(model, nn.Module) else model


def _try_out(
    opened: Opened, dataset: ImageDataset, splits: Splits, device: torch.device
) -> list[str]:
    """One image through the model: whether images, outputs and labels fit together."""
    x = dataset.batch(torch.tensor([0])).x.to(device)
    try:
        with torch.no_grad():
            logits: Any = opened.model(x)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "Set data.image_size to the model's, or model.resize to resize inside the model."
        got = f"{type(error).__name__}: {words}"
        raise ArgumentError(
            describe("model", f"a model of images {tuple(x.shape[1:])}", got, fix)
        ) from error
    check_logits(logits, x)
    outputs, highest = logits.shape[1], int(dataset.labels.max())
    if highest >= outputs:
        got = f"labels up to {highest} ('{splits.classes[highest]}')"
        fix = f"The data has {splits.num_classes} classes: use data of the model's classes."
        expected = f"labels in [0, {outputs}) for a model with {outputs} outputs"
        raise ArgumentError(describe("data", expected, got, fix))
    return _notes_on_classes(opened.classes, splits.classes, outputs)


def _notes_on_classes(known: tuple[str, ...], classes: tuple[str, ...], outputs: int) -> list[str]:
    notes = []
    if outputs != len(classes):
        notes.append(f"the model has {outputs} outputs, the data {len(classes)} classes")
    different = [(a, b) for a, b in zip(known, classes, strict=False) if a != b]
    if different:
        a, b = different[0]
        notes.append(
            f"{len(different)} classes are called otherwise in the data than in the model's file "
            f"('{b}', '{a}'): if they are others, the accuracy says nothing"
        )
    return notes
