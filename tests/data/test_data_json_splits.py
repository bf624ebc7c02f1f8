"""RoLI's lists: the published ones, the label map, and what goes wrong."""

import json
from pathlib import Path

import pytest
import torch
from shared_data import SharedData
from tiny_data import write_image, write_json_splits, write_lists

from roli_fast.data import Splits
from roli_fast.data.json_splits import JsonSplits, read_lists
from roli_fast.errors import DataError

VAL, TEST = {"v.png": 1}, {"t.png": 1}


def load(root: Path, **options: object) -> Splits:
    return JsonSplits(str(root), **{"image_size": 8, **options}).load()  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "counts", "classes", "first"),
    [
        ("caltech256", [14649, 771, 15187], 257, "0"),
        ("cub", [5394, 600, 5794], 200, "001"),
        ("stanforddogs", [10800, 1200, 8580], 120, "1"),
    ],
)
def test_published_lists(
    shared_data: SharedData, name: str, counts: list[int], classes: int, first: str
) -> None:
    root = shared_data.roli_splits() / name
    table = read_lists(root)
    assert [len(table.rows[split]) for split in ("train", "val", "test")] == counts
    assert len(table.classes) == classes and table.classes[0] == first
    for split, rows in table.rows.items():
        assert torch.equal(table.labels[rows].unique(), torch.arange(classes))
        for path, class_id in list(json.loads((root / f"{split}.json").read_text()).items())[:50]:
            label = int(table.labels[table.paths.index(path)])
            assert table.classes[label] == str(class_id)


def test_caltech101_loads_and_decodes(shared_data: SharedData) -> None:
    splits = load(shared_data.caltech101(), image_size=64)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [5417, 401, 2859]
    assert splits.num_classes == 101
    for part in (splits.train, splits.val, splits.test):
        x, _, _ = part.batch(torch.arange(0, len(part), 40))
        assert x.shape[1:] == (3, 64, 64) and 0.3 < x.mean() < 0.8


@pytest.mark.parametrize("folder", ["images", "Images", "256_ObjectCategories", "."])
def test_the_image_folder_is_found(tmp_path: Path, folder: str) -> None:
    root = write_json_splits(tmp_path / "set")
    (root / "images").rename(root / "moved")
    if folder == ".":
        for inner in (root / "moved").iterdir():
            inner.rename(root / inner.name)
    else:
        (root / "moved").rename(root / folder)
    assert load(root).train[0][0].shape == (3, 8, 8)


def test_the_image_folder_can_be_given(tmp_path: Path) -> None:
    root = write_json_splits(tmp_path)
    (root / "images").rename(root / "photos")
    with pytest.raises(DataError, match="set `images` to the folder"):
        load(root)
    assert len(load(root, images="photos").test) == 6


def test_a_split_without_a_class_keeps_the_global_ids(tmp_path: Path) -> None:
    """The original code maps each split by itself: here val and test would both become 0."""
    write_lists(tmp_path, train={"a": 3, "b": 7, "c": 9}, val={"v": 7}, test={"t": 9})
    table = read_lists(tmp_path)
    labels = {split: table.labels[rows].tolist() for split, rows in table.rows.items()}
    assert labels == {"train": [0, 1, 2], "val": [1], "test": [2]}
    assert table.classes == ("3", "7", "9")


@pytest.mark.parametrize(
    ("ids", "order"), [([10, 9, -1], ["-1", "9", "10"]), (["10", "9", "é"], ["10", "9", "é"])]
)
def test_ids_sort_by_their_type(tmp_path: Path, ids: list[object], order: list[str]) -> None:
    train = {f"{index}.png": class_id for index, class_id in enumerate(ids)}
    write_lists(tmp_path, train=train, val={"v": ids[0]}, test={"t": ids[1]})
    assert list(read_lists(tmp_path).classes) == order


def test_a_class_without_training_images_is_an_error(tmp_path: Path) -> None:
    root = write_json_splits(tmp_path)
    write_image(root / "images" / "new.png")
    write_lists(root, val={"new.png": "d"})
    with pytest.raises(DataError, match=r"got none for 1 of 4 \('d'\)"):
        load(root)


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    root = write_json_splits(tmp_path)
    for name in ("train0", "train1", "val0", "test0"):
        (root / "images" / "b" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"got 4 of 21 missing: b/test0\.png, .*, \.\.\.") as caught:
        load(root)
    assert "val0" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"a": 1,\n"b" 2}', r"train\.json`: expected valid JSON, got .* line 3 column 5"),
        ('{"a": 1,}', r"train\.json`: expected valid JSON, got .* line 1"),
        ("", r"train\.json`: expected valid JSON"),
        ('[["a", 1]]', "expected one object"),
        ("3", "expected one object"),
        ("{}", r"expected one object .* not empty, got '\{\}'"),
        ("[]", "expected one object"),
        ('{"a": 1, "a": 2}', "each path once, got repeated: a"),
        ('{"a/b": 1, "a//b": 2}', "each path once, got repeated: a/b"),
        ('{"a": 1.5}', r"integers or strings, got 1\.5 for a"),
        ('{"a": true}', "integers or strings, got true"),
        ('{"a": null}', "integers or strings, got null"),
        ('{"a": {"b": 1}}', "integers or strings"),
        ('{"a": "1"}', "class ids of one type in all lists, got .* and "),
        ('{"/etc/a.png": 1}', "paths inside the image folder, got '/etc/a.png'"),
        ('{"../a.png": 1}', "paths inside the image folder"),
        ('{"a\\\\..\\\\..\\\\b.png": 1}', "paths inside the image folder"),
        ('{"C:\\\\a.png": 1}', "paths inside the image folder"),
        ('{"": 1}', "paths inside the image folder"),
        ('{"v.png": 1}', r"no path in train\.json and val\.json, got 1 in both: v\.png"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    write_lists(tmp_path, val=VAL, test=TEST)
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_lists(tmp_path)


def test_bytes_that_are_not_text_are_named(tmp_path: Path) -> None:
    write_lists(tmp_path, val=VAL, test=TEST)
    (tmp_path / "train.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(DataError, match=r"train\.json`: expected valid JSON, got .*codec"):
        read_lists(tmp_path)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    write_lists(tmp_path, train={"a": 1}, val=VAL)
    with pytest.raises(DataError, match=r"test\.json`: .* got No such file"):
        read_lists(tmp_path)
    with pytest.raises(DataError, match=r"side by side, got Not a directory"):
        read_lists(tmp_path / "val.json")


def test_lists_written_on_windows_are_read(tmp_path: Path) -> None:
    write_lists(tmp_path, val=VAL, test=TEST)
    text = json.dumps({"cat\\.\\1.png": 1})
    (tmp_path / "train.json").write_text(text, "utf-8-sig")
    assert "cat/1.png" in read_lists(tmp_path).paths
