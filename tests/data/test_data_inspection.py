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


def look(splits: dict, decode: bool = False) -> dict[str, list[str]]:
    return inspect_images(splits, decode=decode, quiet=True)


def test_all_bad_files_of_all_splits_are_in_one_message(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train/a": 9, "val/a": 2, "test/a": 70})
    splits = parts(ImageFolder(str(root), image_size=8).load())
    before = look(splits)
    write_image(root / "test/a/2.png", seed=12345)  # the hash of this file alone changes
    after = look(splits)
    assert [before[n] == after[n] for n in splits] == [True, True, False]
    assert len(set(before["test"]) ^ set(after["test"])) == 2
    half = root / "test/a/5.png"
    half.write_bytes(half.read_bytes()[:150])
    look(splits)  # its header is whole
    with pytest.raises(DataError, match="test/a/5.png"):
        look(splits, decode=True)
    bad = ["train/a/3.png", "val/a/1.png", "test/a/0.png", "test/a/69.png"]
    for name in bad:
        (root / name).write_text("<html>404</html>")
    (root / "test/a/7.png").unlink()
    with pytest.raises(DataError) as caught:
        look(splits)
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 images cannot be used:" and len(lines) == 6
    assert all(any(name in line for line in lines) for name in [*bad, "test/a/7.png"])


@pytest.mark.parametrize("name", DATASETS.names())
def test_a_hash_stands_for_the_content(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build: Build = tiny_source(name, tmp_path, monkeypatch)
    splits = build().load()
    found = look(parts(splits))
    assert found == look(parts(splits), decode=True)
    assert [len(hashes) for hashes in found.values()] == [len(p) for p in parts(splits).values()]
    x = splits.train.plain().batch(torch.arange(len(splits.train))).x
    assert len(set(found["train"])) == len(x.flatten(1).unique(dim=0))
