"""CIFAR from its original files; nothing is fetched unasked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import write_cifar
from torchvision import datasets

from roli_fast.data.cifar import Cifar10, Cifar100
from roli_fast.data.transforms import Compose, HorizontalFlip, RandomCrop, Resize
from roli_fast.errors import ArgumentError, DataError

IDS = [5, 14, 20, 39]  # a tenth of 20 images in each of two classes, by hash


def test_pixels_labels_and_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    splits = Cifar10(str(root)).load()
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [36, 4, 10]
    assert splits.test.ids.tolist() == list(range(40, 50))
    assert splits.test.labels.tolist() == [0, 1] * 5
    rows = np.random.default_rng(10).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    x, _, _ = splits.test.batch(torch.arange(10))
    assert torch.equal(x, torch.from_numpy(rows).float() / 255)


def test_nothing_is_augmented_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    train = Cifar10(str(root)).load().train
    assert train.augment is None
    x, _, ids = train.at_epoch(3, seed=4).batch(torch.arange(36))
    rows = np.random.default_rng(40).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    assert torch.equal(x, torch.from_numpy(rows).float()[ids] / 255)
    augment = Cifar10(str(root), augment=True).load().train.augment
    assert augment == Compose((Resize(32), RandomCrop(32, 4), HorizontalFlip(0.5)))


def test_the_validation_part_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of each class, the same on every machine: the ids are written down here."""
    root = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    val = Cifar10(str(root)).load().val
    assert val.ids.tolist() == IDS and sorted(val.labels.tolist()) == [0, 0, 1, 1]
    assert Cifar10(str(root), seed=1).load().val.ids.tolist() != IDS


def test_fine_labels_of_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path, monkeypatch, datasets.CIFAR100)
    assert Cifar100(str(root)).load().classes == ("cat", "dog")


def test_exact_images_in_memory_skip_the_resize(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    assert Cifar10(str(root)).load().test.prepare is None
    assert Cifar10(str(root), image_size=33).load().test.prepare is not None


def test_other_sizes_are_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    splits = Cifar10(str(root), image_size=48).load()
    assert splits.train[0][0].shape == splits.test[0][0].shape == (3, 48, 48)


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_nothing_is_fetched_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Cifar10]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(
        DataError, match=r"cifar-10.*got missing or damaged.*download=True"
    ) as caught:
        kind(str(tmp_path)).load()
    assert str(tmp_path) in str(caught.value)


def test_a_failed_download_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match="got no route to host"):
        Cifar10(str(tmp_path), download=True).load()


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    (root / "cifar-10-batches-py" / "tiny_test").write_bytes(b"")
    with pytest.raises(DataError, match="missing or damaged"):
        Cifar10(str(root)).load()


def test_the_fraction_is_checked() -> None:
    with pytest.raises(ArgumentError, match="`val_fraction`"):
        Cifar10("anywhere", val_fraction=1.0)
