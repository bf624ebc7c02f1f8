"""Data sets of a few small images, written to disk for a test."""

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from roli_fast.data import DATASETS, DataSource, from_datasets
from roli_fast.data.roli_sets import PublishedSplits


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 9)) -> Path:
    """A lossless image of noise, `size` = (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write_folder(root: Path, counts: Mapping[str, int], suffix: str = "png") -> Path:
    """Folder name -> number of images in it, "train/cat": 3."""
    for number, (folder, count) in enumerate(counts.items()):
        for index in range(count):
            write_image(root / folder / f"{index}.{suffix}", 100 * number + index)
    return root


def write_lists(root: Path, **lists: Mapping[str, object]) -> Path:
    """{split: {path: class id}} as JSON files; splits not given are not written."""
    root.mkdir(parents=True, exist_ok=True)
    for split, entries in lists.items():
        (root / f"{split}.json").write_text(json.dumps(entries))
    return root


TINY_LISTS = (12, 3, 6)
"""How many images `write_json_splits` lists for train, val and test."""


def write_json_splits(root: Path, folder: str = "images") -> Path:
    """Three classes in three lists, images under `folder`."""
    lists = {
        split: {f"{name}/{split}{index}.png": name for name in "abc" for index in range(count)}
        for split, count in (("train", 4), ("val", 1), ("test", 2))
    }
    for number, path in enumerate(path for entries in lists.values() for path in entries):
        write_image(root / folder / path, number)
    return write_lists(root, **lists)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, kind: type[datasets.CIFAR10]) -> Path:
    """40 training and 10 test images of two classes in CIFAR's format.

    torchvision checks the files against its list of checksums, so that list is replaced.
    """
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if kind is datasets.CIFAR10 else "fine_labels"

    def write(name: str, content: dict[str, object]) -> str:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw, usedforsecurity=False).hexdigest()

    def part(name: str, count: int) -> list[list[str]]:
        pixels = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [index % 2 for index in range(count)]
        return [[name, write(name, {"data": pixels, key: labels})]]

    meta = dict(kind.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: ["cat", "dog"]})
    monkeypatch.setattr(kind, "meta", meta)
    monkeypatch.setattr(kind, "train_list", part("tiny_train", 40))
    monkeypatch.setattr(kind, "test_list", part("tiny_test", 10))
    return root


Build = Callable[..., DataSource]


def tiny_source(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A function of options that makes the registered data set `name` over tiny data.

    Of one that needs nothing on disk some samples are taken.
    """
    kind = DATASETS[name]
    folder = "images"
    if issubclass(kind, PublishedSplits):
        monkeypatch.setattr(kind, "published", TINY_LISTS)
        monkeypatch.setattr(kind, "num_published", 3)
        name, folder = "json_splits", kind.folders[0]
    writers = {
        "image_folder": lambda: write_folder(root, {"cat": 9, "dog": 8}),
        "json_splits": lambda: write_json_splits(root, folder),
        "cifar10": lambda: write_cifar(root, monkeypatch, datasets.CIFAR10),
        "cifar100": lambda: write_cifar(root, monkeypatch, datasets.CIFAR100),
    }
    if name == "torch":
        folders = datasets.ImageFolder(str(write_folder(root, {"cat": 9, "dog": 8})))
        return lambda **options: from_datasets(folders, **{"image_size": 8, **options})
    if name not in writers:
        return lambda **options: kind(**{"max_per_class": 8, **options})
    where = str(writers[name]())
    usual = {"augment": True} if name.startswith("cifar") else {"image_size": 8}
    return lambda **options: kind(root=where, **{**usual, **options})  # pyright: ignore
