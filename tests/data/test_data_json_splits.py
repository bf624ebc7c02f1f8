"""RoLI's lists: the published ones, the label map, and what goes wrong."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from shared_data import SharedData
from tiny_data import TINY_LISTS, write_image, write_json_splits, write_lists

from roli_fast.data import DATASETS, Splits
from roli_fast.data.json_splits import JsonSplits, read_lists
from roli_fast.data.transforms import Crop
from roli_fast.errors import DataError

VAL, TEST = {"v.png": 1}, {"t.png": 1}


def load(root: Path, **options: object) -> Splits:
    return JsonSplits(str(root), **{"image_size": 8, **options}).load()  # pyright: ignore


def test_caltech101_loads_and_decodes(shared_data: SharedData) -> None:
    splits = load(shared_data.caltech101(), image_size=64)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [5417, 401, 2859]
    assert splits.num_classes == 101
    for part in (splits.train, splits.val, splits.test):
        x, _, _ = part.batch(torch.arange(0, len(part), 200))
        assert x.shape[1:] == (3, 64, 64) and 0.3 < x.mean() < 0.8


@pytest.mark.parametrize("folder", ["images", "256_ObjectCategories", ".", "photos"])
def test_the_image_folder_is_found_or_given(tmp_path: Path, folder: str) -> None:
    root = write_json_splits(tmp_path, folder)
    if folder == "photos":
        with pytest.raises(DataError, match="set `images` to the folder"):
            load(root)
        assert len(load(root, images="photos").test) == 6
    else:
        assert load(root).train[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("ids", "order"),
    [([10, 9, -1], ["-1", "9", "10"]), (["10", "9", "é"], ["10", "9", "é"])],
)
def test_one_label_map_over_all_splits_in_the_order_of_the_ids(
    tmp_path: Path, ids: list[object], order: list[str]
) -> None:
    """The original code maps each split by itself: here val and test would both become 0."""
    train = {f"{index}.png": class_id for index, class_id in enumerate(ids)}
    write_lists(tmp_path, train=train, val={"v": ids[0]}, test={"w": ids[1]})
    table = read_lists(tmp_path)
    labels = {split: table.labels[rows].tolist() for split, rows in table.rows.items()}
    expected = [order.index(str(class_id)) for class_id in ids]
    assert labels == {"train": expected, "val": expected[:1], "test": expected[1:2]}
    assert list(table.classes) == order


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    root = write_json_splits(tmp_path)
    write_image(root / "images" / "new.png")
    for name in ("train0", "train1", "val0", "test0"):
        (root / "images" / "b" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"got 4 of 21 missing: b/test0\.png, .*, \.\.\.") as caught:
        load(root)
    assert "val0" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"a": 1,\n"b" 2}', r"train\.json`: expected valid JSON, got .* line 3 column 5"),
        ("{}", r"expected one object .* not empty, got \{\}"),
        ('{"a": "1"}', "all integers or all strings, got '1' for a and 1 for t.png"),
        ('{"v.png": 1}', r"no path in train\.json and val\.json, got 1 in both: v\.png"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    write_lists(tmp_path, val=VAL, test=TEST)
    with pytest.raises(DataError, match=r"train\.json`: .* side by side, got No such file"):
        read_lists(tmp_path)
    (tmp_path / "train.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_lists(tmp_path)


def test_lists_written_on_windows_are_read(tmp_path: Path) -> None:
    write_lists(tmp_path, val=VAL, test=TEST)
    text = json.dumps({"cat\\.\\1.png": 1})
    (tmp_path / "train.json").write_text(text, "utf-8-sig")
    assert "cat/1.png" in read_lists(tmp_path).paths


PUBLISHED = {  # folder of shared_data, fewest and most images of a class: train, val, test; a class
    "caltech256": ("caltech256", [(57, 57), (3, 3), (20, 767)], "001.ak47"),
    "cub": ("cub", [(26, 27), (3, 3), (11, 30)], "001.Black_footed_Albatross"),
    "stanford_dogs": ("stanforddogs", [(90, 90), (10, 10), (48, 152)], "n02085620-Chihuahua"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lists(name: str, shared_data: SharedData, tmp_path: Path) -> None:
    """Their sizes, one label map over all splits, and classes named after their folders."""
    folder, sizes, first = PUBLISHED[name]
    kind, root = DATASETS[name], shared_data.roli_splits() / folder
    table = kind(str(root)).lists(root)  # pyright: ignore
    for split, bounds in zip(("train", "val", "test"), sizes, strict=True):
        counts = torch.bincount(table.labels[table.rows[split]])
        assert (int(counts.min()), int(counts.max())) == bounds
    # read a second time with nothing but json: equal ids and equal labels go together
    label = dict(zip(table.paths, table.labels.tolist(), strict=True))
    pairs = Counter[tuple[object, int]]()
    for split in ("train", "val", "test"):
        entries = json.loads((root / f"{split}.json").read_text())
        pairs += Counter((class_id, label[path]) for path, class_id in entries.items())
    assert len(pairs) == len({i for i, _ in pairs}) == len(table.classes)
    assert [index for _, index in sorted(pairs)] == list(range(len(table.classes)))
    assert table.classes[0] == first and list(table.classes) == sorted(table.classes)
    assert all(p.startswith(f"{table.classes[label[p]]}/") for p in table.paths[::97])
    with pytest.raises(DataError, match=f"the {len(table.paths)} listed images .*Unpack "):
        kind(str(root)).load()  # pyright: ignore
    # one line fewer, then no list at all
    shutil.copytree(root, tmp_path / "set", copy_function=shutil.copyfile)
    entries = json.loads((root / "val.json").read_text())
    entries.pop(next(iter(entries)))
    (tmp_path / "set" / "val.json").write_text(json.dumps(entries))
    train, val, test = kind.published  # pyright: ignore
    message = f"{train} / {val} / {test} images of .* / {val - 1} / .*json_splits"
    with pytest.raises(DataError, match=message):
        kind(str(tmp_path / "set")).load()  # pyright: ignore
    (tmp_path / "set" / "val.json").unlink()
    with pytest.raises(DataError, match=r"got no val\.json\. RoLI's lists of .*github\.com/Dong"):
        kind(str(tmp_path / "set")).load()  # pyright: ignore


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_images_get_the_transforms_of_the_paper(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = DATASETS[name]
    monkeypatch.setattr(kind, "published", TINY_LISTS)
    monkeypatch.setattr(kind, "num_published", 3)
    root = write_json_splits(tmp_path, kind.folders[0])  # pyright: ignore
    splits = kind(str(root)).load()  # pyright: ignore
    assert splits.classes == ("a", "b", "c") and splits.test[0][0].shape == (3, 224, 224)
    assert splits.train.augment == Crop(224, 256, random=True, flip=0.5)
    assert splits.val.augment is None and splits.test.augment is None
    assert splits.val.prepare == splits.test.prepare == Crop(224, 256)


def test_classes_that_share_a_folder_keep_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = DATASETS["cub"]
    monkeypatch.setattr(kind, "published", (2, 1, 1))
    monkeypatch.setattr(kind, "num_published", 2)
    lists = {"train": {"x/1.png": "1", "x/2.png": "2"}, "val": {"x/3.png": "1"}}
    write_lists(tmp_path, **lists, test={"x/4.png": "2"})
    assert kind(str(tmp_path)).lists(tmp_path).classes == ("1", "2")  # pyright: ignore
