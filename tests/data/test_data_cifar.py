"""CIFAR from its original files; nothing is fetched unasked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import write_cifar
from torchvision import datasets

from roli_fast.data.cifar import Cifar10, Cifar100
from roli_fast.data.transforms import training_transform
from roli_fast.errors import DataError

IDS = [5, 14, 20, 39]  # a tenth of 20 images in each of two classes, by hash


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return str(write_cifar(tmp_path, monkeypatch, datasets.CIFAR10))


def written(count: int) -> torch.Tensor:
    """The pixels that `write_cifar` wrote into a part of `count` images."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return torch.from_numpy(pixels).float() / 255


def test_pixels_labels_and_the_fixed_validation_part(root: str) -> None:
    """A tenth of each class, the same on every machine: the ids are written down here. Nothing is
    augmented unless asked."""
    splits = Cifar10(root).load()
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [36, 4, 10]
    assert splits.test.ids.tolist() == list(range(40, 50)) and splits.classes == ("cat", "dog")
    assert splits.test.labels.tolist() == [0, 1] * 5
    assert torch.equal(splits.test.batch(torch.arange(10)).x, written(10))
    x, _, ids = splits.train.at_epoch(3, seed=4).batch(torch.arange(36))
    assert torch.equal(x, written(40)[ids])
    assert Cifar10(root, augment=True).load().train.augment == training_transform(32)
    assert splits.val.ids.tolist() == IDS and sorted(splits.val.labels.tolist()) == [0, 0, 1, 1]
    assert Cifar10(root, seed=1).load().val.ids.tolist() != IDS
    assert splits.test.prepare is None
    splits = Cifar10(root, image_size=48).load()
    assert splits.train[0][0].shape == splits.test[0][0].shape == (3, 48, 48)


def test_fine_labels_of_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path, monkeypatch, datasets.CIFAR100)
    assert Cifar100(str(root)).load().classes == ("cat", "dog")


def test_nothing_is_fetched_unasked_and_a_failure_is_explained(
    tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"elsewhere.cifar-10.*missing or damaged.*download=True"):
        Cifar10(str(tmp_path / "elsewhere")).load()
    with pytest.raises(DataError, match="got no route to host"):
        Cifar10(str(tmp_path / "elsewhere"), download=True).load()
    (Path(root) / "cifar-10-batches-py" / "tiny_test").write_bytes(b"")
    with pytest.raises(DataError, match="missing or damaged"):
        Cifar10(root).load()
