"""Image folders: layouts, the class map, and what goes wrong."""

from pathlib import Path

import pytest
import torch
from shared_data import SharedData
from tiny_data import write_folder, write_image

from roli_fast.data import Splits, batches
from roli_fast.data.image_folder import ImageFolder
from roli_fast.errors import ArgumentError, DataError


def load(root: Path, **options: object) -> Splits:
    return ImageFolder(str(root), **{"image_size": 8, **options}).load()  # pyright: ignore


def names(splits: Splits, split: str) -> set[str]:
    part = getattr(splits, split)
    return {part.name(index) for index in range(len(part))}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("TRAIN", "Valid", "Test"),
        ("training_set", "dev_set", "testing"),
        ("train2017", "val2017", "test2017"),
        ("train-images", "Evaluation", "test images"),
    ],
)
def test_names_of_the_splits(tmp_path: Path, train: str, val: str, test: str) -> None:
    """A split without a class keeps the label map of all."""
    counts = {f"{train}/a": 2, f"{train}/b": 2, f"{val}/b": 1, f"{test}/a": 1}
    splits = load(write_folder(tmp_path, counts))
    assert splits.classes == ("a", "b") and len(splits.train) == 4
    assert names(splits, "val") == {f"{val}/b/0.png"} and splits.val.labels.tolist() == [1]
    assert names(splits, "test") == {f"{test}/a/0.png"} and splits.test.labels.tolist() == [0]


@pytest.mark.parametrize("test", ["Test", "val"])
def test_train_and_one_other_are_train_and_test(tmp_path: Path, test: str) -> None:
    """Validation is cut from train; the published val is the test split, as for ImageNet."""
    splits = load(write_folder(tmp_path, {"train/a": 10, "train/b": 20, f"{test}/a": 2}))
    assert names(splits, "test") == {f"{test}/a/0.png", f"{test}/a/1.png"}
    assert torch.bincount(splits.train.labels).tolist() == [9, 18]
    assert torch.bincount(splits.val.labels).tolist() == [1, 2]


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    """As a subset of a large data set is often made. A class called train is a class."""
    write_folder(tmp_path / "all", {"a": 5, "train": 5, "test": 5, "c": 5})
    (tmp_path / "some").mkdir()
    for name in ("a", "test", "train"):
        (tmp_path / "some" / name).symlink_to(tmp_path / "all" / name)
    assert load(tmp_path / "some").classes == ("a", "test", "train")


@pytest.mark.parametrize("below", ["", "train/"])
def test_one_folder_is_cut_in_three(tmp_path: Path, below: str) -> None:
    root = write_folder(tmp_path, {f"{below}a": 10, f"{below}b": 20})
    splits = load(root, val_fraction=0.2, test_fraction=0.5)
    found = [torch.bincount(p.labels).tolist() for p in (splits.train, splits.val, splits.test)]
    assert found == [[3, 6], [2, 4], [5, 10]]  # fractions of the whole, not of what is left
    assert names(splits, "test") != names(load(root, test_fraction=0.5, seed=1), "test")


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index, name in enumerate(["1.JPEG", "2.webp", "deep/3.PNG", "4.gif", "5.bmp"]):
        write_image(tmp_path / "train" / "a" / name, index)
    root = write_folder(tmp_path, {"train/b": 5, "test/a": 2, "unlabeled": 3})
    write_image(root / ".cache" / "x.png")
    write_image(root / "train" / "a" / ".x.png")
    write_image(root / "train" / "a" / ".ipynb_checkpoints" / "x.png")
    (root / "train" / "a" / "notes.txt").write_text("not an image")
    (root / "train" / "a" / "b.HEIC").write_bytes(b"")
    (root / "train" / "b" / "c.heic").write_bytes(b"")
    (root / "LICENSE").write_text("")
    write_image(root / "train" / "x.png")
    splits = load(root)
    for words in (
        "2 .heic files",
        "1 .txt files",
        "1 hidden images",
        "1 images in the hidden folder .cache",
        "1 images outside of class folders",
        "1 images in the hidden folder .ipynb_checkpoints",
        "3 images in unlabeled",
    ):
        assert words in caplog.text
    assert len(splits.train) + len(splits.val) + len(splits.test) == 12
    assert splits.classes == ("a", "b")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, r"`root`: .*\{train,val,test\}/<class>.*got no image"),
        ({"a": 5, "empty": 0}, "got none in empty"),
        ({"a": 9, "rare": 2}, "3 or more images a class.* got 2 of 'rare'"),
        ({"train/a": 2, "val/a": 1, "test/zebra": 1}, r"got none for 1 of 2 \('zebra'\)"),
        ({"train/a": 2, "val/a": 1, "valid/a": 1}, "one folder for 'val', got val and valid"),
        # classes called as splits
        ({"Train": 5, "Val": 5, "Test": 5}, r"\{train,val,test\}/<class>.* alone"),
        # folders beside splits that look like one
        ({"train/a": 5, "test/a": 2, "held/a": 2}, "got images in held beside test and train in"),
        ({"train/steam": 5, "train/diesel": 5, "plane": 5}, "images in plane beside train in"),
    ],
)
def test_what_is_refused(tmp_path: Path, counts: dict[str, int], words: str) -> None:
    for folder in counts:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=words):
        load(write_folder(tmp_path, counts))


def test_a_missing_root_and_impossible_fractions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere, which is not one"):
        load(tmp_path / "nowhere")
    root = write_folder(tmp_path, {"a": 5})
    with pytest.raises(ArgumentError, match=r"`val_fraction`: .*\(0, 1\), got 1.0"):
        load(root, val_fraction=1.0)
    with pytest.raises(ArgumentError, match="`test_fraction . val_fraction`: .* got 1.0"):
        load(root, val_fraction=0.5, test_fraction=0.5)


def test_real_folders(shared_data: SharedData) -> None:
    splits = load(shared_data.cifar10(per_class=20), image_size=32)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [180, 20, 200]
    assert splits.classes[0] == "airplane" and splits.num_classes == 10
    x, y, _ = next(batches(splits.train, batch_size=64, seed=0, epoch=0, shuffle=True))
    assert x.shape == (64, 3, 32, 32) and 0.2 < x.mean() < 0.7
    assert len(y.unique()) > 5
