"""A look at all images before anything is built on them."""

from pathlib import Path

import pytest
import torch
from tiny_data import Build, tiny_source, write_folder, write_image

from roli_fast.data import DATASETS, Splits
from roli_fast.data.image_folder import ImageFolder
from roli_fast.data.inspection import inspect_images
from roli_fast.errors import DataError


def parts(splits: Splits) -> dict:
    return {"train": splits.train, "val": splits.val, "test": splits.test}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", {"train/a": 9, "val/a": 2, "test/a": 70})


def test_all_bad_files_of_all_splits_are_in_one_message(images: Path) -> None:
    splits = parts(ImageFolder(str(images), image_size=8).load())
    bad = ["train/a/3.png", "val/a/1.png", "test/a/0.png", "test/a/69.png"]
    for name in bad:
        (images / name).write_text("<html>404</html>")
    (images / "test/a/7.png").unlink()
    with pytest.raises(DataError) as caught:
        inspect_images(splits, decode=False, quiet=True)
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 images cannot be used:" and len(lines) == 6
    assert all(any(name in line for line in lines) for name in [*bad, "test/a/7.png"])


def test_half_a_file_is_found_by_decoding_it(images: Path) -> None:
    splits = parts(ImageFolder(str(images), image_size=8).load())
    path = images / "test/a/5.png"
    path.write_bytes(path.read_bytes()[:150])
    inspect_images(splits, decode=False, quiet=True)
    with pytest.raises(DataError, match="test/a/5.png"):
        inspect_images(splits, decode=True, quiet=True)


@pytest.mark.parametrize("name", DATASETS.names())
def test_a_hash_stands_for_the_content(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build: Build = tiny_source(name, tmp_path, monkeypatch)
    splits = build().load()
    first, again = (inspect_images(parts(splits), decode=d, quiet=True) for d in (True, False))
    assert first == again
    assert [len(first[n]) for n in ("train", "val", "test")] == [
        len(part) for part in parts(splits).values()
    ]
    x = splits.train.plain().batch(torch.arange(len(splits.train))).x
    assert len(set(first["train"])) == len(x.flatten(1).unique(dim=0))


def test_one_pixel_changes_the_hash_of_its_file_alone(images: Path) -> None:
    splits = parts(ImageFolder(str(images), image_size=8).load())
    before = inspect_images(splits, decode=False, quiet=True)
    write_image(images / "test/a/0.png", seed=12345)
    after = inspect_images(splits, decode=False, quiet=True)
    changed = [
        splits[name].name(place)
        for name in before
        for place, (a, b) in enumerate(zip(before[name], after[name], strict=True))
        if a != b
    ]
    assert changed == ["test/a/0.png"]
