"""Data sets of torch and torchvision as ours, and what is wrong with some of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tiny_data import write_folder
from tiny_models import images
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import v2

from roli_fast.data import from_datasets
from roli_fast.data.torch_datasets import TorchDatasets
from roli_fast.errors import ArgumentError, DataError


class Items(Dataset):
    """Whatever is listed."""

    def __init__(self, *items, **fields) -> None:
        self.items = items
        self.__dict__ |= fields

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def many(image, count: int = 12, first: int = 0) -> Items:
    """`count` samples of two classes."""
    return Items(*((image, first + index % 2) for index in range(count)))


BYTES = (images(3, 4, 4) * 255).to(torch.uint8)
GREY = BYTES[0]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (BYTES, BYTES),
        (BYTES.float() / 255, BYTES),
        (BYTES.permute(1, 2, 0).numpy(), BYTES),
        (Image.fromarray(BYTES.permute(1, 2, 0).numpy()), BYTES),
        (GREY.float()[None] / 255, GREY.expand(3, 4, 4)),
        (GREY.numpy(), GREY.expand(3, 4, 4)),
    ],
    ids=["bytes", "floats", "array", "PIL", "grey floats", "grey array"],
)
def test_images_of_every_kind_keep_their_pixels(image, expected) -> None:
    splits = from_datasets(many(image), val_fraction=0.2, augment=False).load()
    x, y, _ = splits.train[0]
    assert splits.train.image_size == 4 and y == int(splits.train.labels[0])
    assert torch.equal((x * 255).round().to(torch.uint8), expected)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, Image.fromarray])
@pytest.mark.parametrize("bits", [None, 12])
def test_sixteen_bits_are_scaled_by_the_bits_in_use(kind, bits: int | None) -> None:
    """All 16 unless a number is given: a data set is not read through for its brightest pixel."""
    values = np.array([[0, 4095], [1024, 2048]], dtype=np.uint16)
    data = from_datasets(many(kind(values)), augment=False, bit_depth=bits).load().train
    expected = np.round(values / (2 ** (bits or 16) - 1) * 255).astype(int).tolist()
    assert (data[0][0][0] * 255).round().int().tolist() == expected


def test_splits_and_names_are_those_that_are_given() -> None:
    train = TensorDataset(images(8, 3, 4, 4), torch.arange(8) % 4)
    test = TensorDataset(images(4, 3, 4, 4, seed=1), torch.arange(4))
    splits = from_datasets(train, test, test, classes="abcd").load()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (8, 4, 4)
    assert splits.classes == tuple("abcd") and splits.test.name(3) == "test/3"
    x, y, _ = splits.test[2]
    assert y == 2 and (x - test[2][0]).abs().max() <= 0.5 / 255 + 1e-6  # rounded to 8 bits


def test_a_folder_of_torchvision_and_its_subset(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 9, "dog": 8})
    whole = torchvision.datasets.ImageFolder(str(tmp_path))
    with pytest.raises(ArgumentError, match="image_size.*images of 9x12"):
        from_datasets(whole)
    source = from_datasets(Subset(whole, range(2, 15)), image_size=8)
    splits = source.load()
    assert splits.classes == ("cat", "dog") and source.augment  # as PIL images are
    found = torch.cat([splits.train.labels, splits.val.labels, splits.test.labels])
    assert found.bincount().tolist() == [7, 6]
    assert splits.train[0][0].shape == (3, 8, 8)
    # tensors are left to the data set's own transform
    small = v2.Compose([v2.ToImage(), v2.Resize((8, 8)), v2.ToDtype(torch.float32, scale=True)])
    own = from_datasets(torchvision.datasets.ImageFolder(str(tmp_path), transform=small))
    assert not own.augment and own.image_size == 8 and own.load().train[0][0].shape == (3, 8, 8)


def test_mappings_as_those_of_hugging_face() -> None:
    items = [{"image": BYTES, "label": index % 2, "id": index} for index in range(8)]
    assert from_datasets(Items(*items)).load().classes == ("0", "1")
    datasets = pytest.importorskip(
        "datasets", reason="the library is not installed; a stand-in runs too"
    )

    columns = {"image": [Image.fromarray(GREY.numpy())] * 8, "label": [0, 1] * 4}
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"])
    )
    splits = from_datasets(datasets.Dataset.from_dict(columns, features=features)).load()
    assert splits.classes == ("no", "yes")


class Stream(IterableDataset):
    def __iter__(self):
        yield BYTES, 0


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Stream(), r"`train`: expected a map-style data set.*collect it, list\(dataset\)"),
        (Items({"pixels": 1, "class": 0}), r"`train\[0\]`.*mapping with pixels, class"),
        (Items(7), r"`train\[0\]`: expected \(image, label\), got int"),
        (Items(), "with a length, got none, or 0 samples"),
        (many("no image"), "PIL image or a tensor.*got str"),
        (many(torch.rand(4, 5, 5)), "1 or 3 channels"),
        (many(BYTES.float()), r"values in \[0, 1\].*Divide by 255"),
        (many(v2.Normalize([0.5] * 3, [0.1] * 3)(images(3, 4, 4))), r"normalis.*models\.wrap"),
        (many(BYTES, first=1), r"labels from 1 to 2\. Subtract 1"),
        (Items(*[(BYTES, [0, 1])] * 8), "an integer label.*several labels are not supported"),
    ],
)
def test_what_is_no_data_set_of_images(train, message: str) -> None:
    with pytest.raises((ArgumentError, DataError), match=message):
        from_datasets(train).load()


MODULE = """
import torch
from torch.utils.data import TensorDataset
def both():
    x = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    train = TensorDataset(x, torch.arange(12) % 3)
    return train, TensorDataset(x, torch.arange(12) % 3)
"""


def test_a_function_that_is_named_makes_them(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_data_sets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    source = TorchDatasets("my_data_sets:both", image_size=4, augment=False)
    splits = source.load()
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (12, 12)
    with pytest.raises(ArgumentError, match="`factory`.*no_such_module"):
        TorchDatasets("no_such_module:both").load()
    with pytest.raises(ArgumentError, match="data sets of this process"):
        TorchDatasets("given:Nothing-0").load()


def test_the_name_of_given_data_sets_follows_their_content() -> None:
    first, second = (from_datasets(many(BYTES + k)) for k in (0, 1))
    assert first.factory == from_datasets(many(BYTES)).factory != second.factory


def test_labels_that_are_listed_are_taken_without_reading_an_image() -> None:
    class Counted(Items):
        reads = 0

        def __getitem__(self, index: int):
            Counted.reads += 1
            return self.items[index]

    labels = list(np.arange(40) % 4)
    dataset = Counted(*((BYTES, label) for label in labels), targets=labels)
    source = from_datasets(dataset)
    before = Counted.reads
    source.load()
    assert Counted.reads == before
