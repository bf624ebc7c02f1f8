"""Image folders: layouts, the class map, and what goes wrong."""

from pathlib import Path

import pytest
import torch
from shared_data import SharedData
from tiny_data import write_folder, write_image

from roli_fast.data import Splits, batches
from roli_fast.data.image_folder import ImageFolder
from roli_fast.errors import DataError


def load(root: Path, **options: object) -> Splits:
    return ImageFolder(str(root), **{"image_size": 8, **options}).load()  # pyright: ignore


def names(splits: Splits, split: str) -> set[str]:
    part = getattr(splits, split)
    return {part.name(index) for index in range(len(part))}


def test_three_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    counts = {f"{s}/{c}": n for s, n in (("train", 3), ("val", 2), ("test", 1)) for c in "ab"}
    splits = load(write_folder(tmp_path, counts))
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        expected = {f"{split}/{c}/{i}.png" for c in "ab" for i in range(count)}
        assert names(splits, split) == expected


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", "Test"),
        ("TRAIN", "VALID", "TEST"),
        ("training", "validation", "testing"),
        ("training_set", "dev_set", "test_set"),
        ("TrainSet", "DevSet", "TestSet"),
        ("train2017", "val2017", "test2017"),
        ("train", "eval", "test"),
        ("train", "val", "eval"),
        ("seg_train", "seg_dev", "seg_test"),
        ("train-images", "Evaluation", "test images"),
    ],
)
def test_other_names_of_the_splits(tmp_path: Path, train: str, val: str, test: str) -> None:
    splits = load(
        write_folder(tmp_path, {f"{train}/a": 2, f"{train}/b": 2, f"{val}/a": 1, f"{test}/b": 1})
    )
    assert splits.classes == ("a", "b")
    assert len(splits.train) == 4
    assert (names(splits, "val"), names(splits, "test")) == (
        {f"{val}/a/0.png"},
        {f"{test}/b/0.png"},
    )


@pytest.mark.parametrize("test", ["Test", "testing", "eval", "val", "DEV"])
def test_train_and_one_other_are_train_and_test(tmp_path: Path, test: str) -> None:
    splits = load(write_folder(tmp_path, {"train/a": 9, f"{test}/a": 2}))
    assert names(splits, "test") == {f"{test}/a/0.png", f"{test}/a/1.png"}


def test_an_unknown_folder_of_classes_beside_train_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train/a": 5, "test/a": 2, "holdout/a": 2})
    with pytest.raises(DataError, match="got images in holdout beside test and train in"):
        load(root)


def test_images_beside_train_alone_are_named(tmp_path: Path) -> None:
    """Classes called train and plane, one of which has folders inside."""
    with pytest.raises(DataError, match="got images in plane beside train in"):
        load(write_folder(tmp_path, {"train/steam": 5, "train/diesel": 5, "plane": 5}))


def test_unlabelled_images_beside_splits_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = load(write_folder(tmp_path, {"train/a": 5, "test/a": 2, "unlabeled": 3}))
    assert len(splits.test) == 2 and "left out 3 images in unlabeled" in caplog.text


@pytest.mark.parametrize(
    "folders",
    [("train", "test"), ("Train", "Val", "Test"), ("val/a", "test/a"), ("val/a", "test/b")],
)
def test_folders_called_as_splits_are_no_classes(tmp_path: Path, folders: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"`root`: .*\{train,val,test\}/<class>.* alone"):
        load(write_folder(tmp_path, dict.fromkeys(folders, 5)))


def test_without_val_it_is_cut_from_train(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train/a": 10, "train/b": 20, "test/a": 1, "test/b": 1})
    splits = load(root)
    assert torch.bincount(splits.train.labels).tolist() == [9, 18]
    assert torch.bincount(splits.val.labels).tolist() == [1, 2]
    assert names(splits, "test") == {"test/a/0.png", "test/b/0.png"}


def test_with_train_and_val_alone_val_is_the_test(tmp_path: Path) -> None:
    splits = load(write_folder(tmp_path, {"train/a": 10, "val/a": 3}))
    assert names(splits, "test") == {f"val/a/{index}.png" for index in range(3)}
    assert len(splits.val) == 1 and len(splits.train) == 9


@pytest.mark.parametrize("below", ["", "train/"])
def test_one_folder_is_cut_in_three(tmp_path: Path, below: str) -> None:
    root = write_folder(tmp_path, {f"{below}a": 10, f"{below}b": 20})
    splits = load(root, val_fraction=0.2, test_fraction=0.5)
    found = [torch.bincount(p.labels).tolist() for p in (splits.train, splits.val, splits.test)]
    assert found == [[3, 6], [2, 4], [5, 10]]  # fractions of the whole, not of what is left


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    splits = load(write_folder(tmp_path, {"train": 5, "plane": 5, "test": 5}))
    assert splits.classes == ("plane", "test", "train")


def test_another_seed_cuts_elsewhere(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a": 30})
    tests = [names(load(root, seed=seed), "test") for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


def test_a_split_without_a_class_keeps_the_label_map(tmp_path: Path) -> None:
    root = write_folder(
        tmp_path, {"train/a": 2, "train/b": 2, "train/c": 2, "val/b": 1, "test/c": 1}
    )
    splits = load(root)
    assert (splits.val.labels.tolist(), splits.test.labels.tolist()) == ([1], [2])
    assert splits.classes == ("a", "b", "c")


def test_a_class_without_training_images_is_an_error(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train/a": 2, "val/a": 1, "test/a": 1, "test/zebra": 1})
    with pytest.raises(DataError, match=r"got none for 1 of 2 \('zebra'\)"):
        load(root)


def test_hidden_and_foreign_files_are_left_out_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path, {"a": 5, "b": 5})
    write_image(root / ".cache" / "x.png")
    write_image(root / "a" / ".x.png")
    write_image(root / "a" / ".ipynb_checkpoints" / "x.png")
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "a" / "b.HEIC").write_bytes(b"")
    (root / "b" / "c.heic").write_bytes(b"")
    (root / "LICENSE").write_text("")
    write_image(root / "x.png")
    splits = load(root)
    for words in (
        "2 .heic files",
        "1 .txt files",
        "1 hidden images",
        "1 images in .cache",
        "1 images outside of class folders",
    ):
        assert words in caplog.text
    assert len(splits.train) + len(splits.val) + len(splits.test) == 10
    assert splits.classes == ("a", "b")


def test_extensions_in_any_case_and_nested_folders(tmp_path: Path) -> None:
    for index, name in enumerate(["1.JPEG", "2.webp", "deep/3.PNG", "4.gif", "5.bmp"]):
        write_image(tmp_path / "a" / name, index)
    splits = load(tmp_path)
    assert len(splits.train) + len(splits.val) + len(splits.test) == 5


def test_an_empty_root_says_which_layouts_there_are(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"`root`: .*\{train,val,test\}/<class>.*got no image"):
        load(tmp_path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere, which is not one"):
        load(tmp_path / "nowhere")


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a": 5})
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="got none in empty"):
        load(root)


def test_two_validation_folders_are_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one folder for 'val', got val and valid"):
        load(write_folder(tmp_path, {"train/a": 2, "val/a": 1, "valid/a": 1}))


def test_a_class_too_small_to_cut_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a": 9, "rare": 2})
    with pytest.raises(DataError, match="3 or more images a class.* got 2 of 'rare'"):
        load(root)


def test_cifar10_as_a_folder(shared_data: SharedData) -> None:
    splits = load(shared_data.cifar10(per_class=20), image_size=32)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [180, 20, 200]
    assert splits.classes[0] == "airplane" and splits.num_classes == 10
    x, y, _ = next(batches(splits.train, batch_size=64, seed=0, epoch=0, shuffle=True))
    assert x.shape == (64, 3, 32, 32) and 0.2 < x.mean() < 0.7
    assert len(y.unique()) > 5


def test_imagenet_folder_uses_val_as_test(shared_data: SharedData) -> None:
    splits = load(shared_data.imagenet100_32(per_class=3), image_size=32, val_fraction=0.3)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [198, 99, 297]
