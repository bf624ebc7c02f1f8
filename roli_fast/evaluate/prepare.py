"""Reads data and opens the model, and finds what does not fit before anything is written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roli_fast.data import DataSource, ImageDataset, Splits
from roli_fast.data.inspection import inspect_images
from roli_fast.engine.input_gradient import check_logits
from roli_fast.errors import ArgumentError, RoliFastError, RunDirectoryError, describe
from roli_fast.evaluate.assessment import PLACE_FIELDS, SCHEMA, Assessment
from roli_fast.evaluate.classes import match_classes
from roli_fast.evaluate.dataset import mixed_order
from roli_fast.evaluate.subject import Opened, open_model
from roli_fast.files import naming, read_json
from roli_fast.running.device import pick_device, pick_threads, saved_threads
from roli_fast.running.environment import hash_samples, hash_text, packages
from roli_fast.running.ranks import Ranks

IDENTITY = "identity.json"
"""The file of what an evaluation's results depend on, so that a resume never mixes two."""

PARTS = ("configuration", "model", "images", "pixels")


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
    found: dict[str, Any]


def prepare(assessment: Assessment, ranks: Ranks, *, quiet: bool = True) -> Prepared:
    """Read the data and open the model, as far as that finds mistakes; writes nothing.

    All images that will be evaluated are decoded once.
    """
    device = pick_device(ranks.device(assessment.device))
    splits = {"data": _load(assessment.data, "data")}
    datasets = {"data": chosen(assessment, splits["data"])}
    if assessment.ood is not None:
        splits["ood"] = _load(assessment.ood, "ood")
        datasets["ood"] = chosen(assessment, splits["ood"], at_most=True)
    hashes = inspect_images(datasets, decode=True, quiet=quiet)
    own, size = splits["data"], datasets["data"].image_size
    opened = open_model(assessment.model, num_classes=own.num_classes, image_size=size)
    if isinstance(opened.model, nn.Module):
        opened.model.to(device)
    matched: dict[str, ImageDataset] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    notes = list(opened.notes)
    for name, dataset in datasets.items():
        count = _count_outputs(opened, dataset, device)
        names = (splits[name].classes, opened.classes)
        outputs[name], more = match_classes(*names, count, assessment.classes, name)
        matched[name] = replace(dataset, labels=torch.tensor(outputs[name])[dataset.labels])
        notes += more if name == "data" else [f"{name}: {note}" for note in more]
    opened = replace(opened, notes=tuple(notes))
    found = identity(assessment, datasets, hashes, opened)
    usual = torch.get_num_threads()
    if isinstance(opened.model, nn.Module):
        usual = pick_threads(opened.model, size, assessment.batch_size)
    found |= {"threads": assessment.threads or usual, "device": str(device), "packages": packages()}
    second = matched.get("ood")
    return Prepared(own, matched["data"], second, opened, outputs["data"], device, found)


def _load(source: DataSource, field: str) -> Splits:
    """The images of a field; what is wrong with them names the field."""
    try:
        return source.load()
    except RoliFastError as error:
        raise type(error)(f"{field}: {error}") from error


def _count_outputs(opened: Opened, dataset: ImageDataset, device: torch.device) -> int:
    """How many outputs the model has; one image goes through it, to see that the two fit."""
    x = dataset.batch(torch.tensor([0])).x.to(device)
    try:
        with torch.no_grad():
            logits: Any = opened.model(x)
    except Exception as error:  # whatever a model raises for images of another size
        fix = "Set data.image_size (or model.resize) and data.channels to the model's."
        got = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ArgumentError(
            describe("model", f"a model of images {tuple(x.shape[1:])}", got, fix)
        ) from error
    check_logits(logits, x)
    return logits.shape[1]


def chosen(assessment: Assessment, splits: Splits, *, at_most: bool = False) -> ImageDataset:
    """The images of an evaluation, without augmentation, in the order of the evaluation.

    Args:
        assessment: the split, the seed, and how many images.
        splits: of the data.
        at_most: take all where there are fewer, as of a second data set.

    Raises:
        ArgumentError: more images than the split has.
    """
    dataset: ImageDataset = getattr(splits, assessment.split)
    count = assessment.images or len(dataset)
    if count > len(dataset) and not at_most:
        raise ArgumentError(
            describe("images", f"at most {len(dataset)}, the {assessment.split} split", count)
        )
    return dataset.plain().subset(mixed_order(dataset.labels, assessment.seed)[:count])


def identity(
    assessment: Assessment,
    datasets: Mapping[str, ImageDataset],
    hashes: Mapping[str, Sequence[str]],
    opened: Opened,
) -> dict[str, Any]:
    """Hashes of what a resume must find unchanged, `hashes` of the images' contents among them;
    `key` is of all of them but those."""
    tree = {k: v for k, v in SCHEMA.to_tree(assessment).items() if k not in PLACE_FIELDS}
    parts = datasets.values()
    rows = ((d.name(i), y) for d in parts for i, y in enumerate(d.labels.tolist()))
    found = {
        "configuration": hash_text(json.dumps(tree, sort_keys=True)),
        "model": opened.described["sha256"],
        "images": hash_samples(rows),
    }
    pixels = hash_text("\n".join(content for name in datasets for content in hashes[name]))
    return {**found, "key": hash_text(json.dumps(found, sort_keys=True)), "pixels": pixels}


def check_same(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What was recorded.

    Raises:
        RunDirectoryError: nothing readable, or something else than `found`.
    """
    path = folder / IDENTITY
    fix = "Nothing was changed. Leave out --resume, and name a new folder."
    with naming(path, RunDirectoryError, "--out", "a folder in which an evaluation began", fix):
        saved = read_json(path)
        changed = [name for name in PARTS if saved[name] != found[name]]
        if saved_threads(saved) is None:
            raise KeyError("threads")
    if changed:
        raise RunDirectoryError(
            f"`--out`: '{folder}' began with another {', another '.join(changed)}: its flags would "
            "be mixed with others. Put back what changed, or name a new folder."
        )
    return saved
