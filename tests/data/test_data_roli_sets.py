"""Caltech-256, CUB-200 and Stanford Dogs: published lists, their sizes, what can be missing."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from shared_data import SharedData
from tiny_data import TINY_LISTS, write_image, write_json_splits

from roli_fast.data import DATASETS
from roli_fast.data.json_splits import read_lists
from roli_fast.data.roli_sets import PublishedSplits
from roli_fast.data.transforms import CenterCrop, Compose, HorizontalFlip, RandomCrop, Resize
from roli_fast.errors import DataError

NAMES = {"caltech256": "caltech256", "cub": "cub", "stanford_dogs": "stanforddogs"}
PER_CLASS = {  # fewest and most images of a class, as published: train, val, test
    "caltech256": [(57, 57), (3, 3), (20, 767)],
    "cub": [(26, 27), (3, 3), (11, 30)],
    "stanford_dogs": [(90, 90), (10, 10), (48, 152)],
}


def kind(name: str) -> type[PublishedSplits]:
    found = DATASETS[name]
    assert issubclass(found, PublishedSplits)
    return found


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tiny(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with short lists and their images in the folder that the archive has."""
    monkeypatch.setattr(kind(name), "published", TINY_LISTS)
    monkeypatch.setattr(kind(name), "num_published", 3)
    return write_json_splits(tmp_path / "set", kind(name).folders[0])


class TestPublishedLists:
    @pytest.fixture
    def root(self, name: str, shared_data: SharedData) -> Path:
        return shared_data.roli_splits() / NAMES[name]

    def test_they_have_the_published_sizes(self, name: str, root: Path) -> None:
        table = kind(name)(str(root)).lists(root)
        for split, (fewest, most) in zip(("train", "val", "test"), PER_CLASS[name], strict=True):
            counts = torch.bincount(table.labels[table.rows[split]])
            assert (int(counts.min()), int(counts.max())) == (fewest, most)
        total = {"caltech256": 30_607, "cub": 11_788, "stanford_dogs": 20_580}
        assert len(table.paths) == total[name]

    def test_one_label_map_over_all_splits(self, name: str, root: Path) -> None:
        """Read a second time with nothing but json: equal ids and equal labels go together."""
        table = kind(name)(str(root)).lists(root)
        label = dict(zip(table.paths, table.labels.tolist(), strict=True))
        pairs = Counter()
        for split in ("train", "val", "test"):
            entries = json.loads((root / f"{split}.json").read_text())
            pairs += Counter((class_id, label[path]) for path, class_id in entries.items())
        assert len(pairs) == len({i for i, _ in pairs}) == len(table.classes)
        assert [index for _, index in sorted(pairs)] == list(range(len(table.classes)))

    def test_a_class_is_named_after_its_folder(self, name: str, root: Path) -> None:
        table = kind(name)(str(root)).lists(root)
        first = {
            "caltech256": "001.ak47",
            "cub": "001.Black_footed_Albatross",
            "stanford_dogs": "n02085620-Chihuahua",
        }
        assert table.classes[0] == first[name] and list(table.classes) == sorted(table.classes)
        for path, index in zip(table.paths[::97], table.labels.tolist()[::97], strict=True):
            assert path.startswith(f"{table.classes[index]}/")

    def test_images_that_are_not_there(self, name: str, root: Path) -> None:
        with pytest.raises(DataError) as caught:
            kind(name)(str(root)).load()
        text = str(caught.value)
        assert f"the {len(read_lists(root).paths)} listed images (" in text
        assert f"Unpack {kind(name).archive}" in text and f"{kind(name).folders[0]}/" in text

    def test_a_list_that_was_changed(self, name: str, root: Path, tmp_path: Path) -> None:
        shutil.copytree(root, tmp_path / "set")
        file = tmp_path / "set" / "val.json"
        entries = json.loads(file.read_text())
        entries.pop(next(iter(entries)))
        file.chmod(0o644)
        file.write_text(json.dumps(entries))
        published = kind(name).published
        with pytest.raises(DataError, match=f"/ {published['val'] - 1} /.*json_splits") as caught:
            kind(name)(str(tmp_path / "set")).load()
        assert f"/ {published['val']} / {published['test']} images of" in str(caught.value)

    def test_a_list_in_place_of_another(self, name: str, root: Path, tmp_path: Path) -> None:
        shutil.copytree(root, tmp_path / "set")
        shutil.copy(root / "val.json", tmp_path / "set" / "test.json.new")
        (tmp_path / "set" / "test.json.new").rename(tmp_path / "set" / "test.json")
        with pytest.raises(
            DataError, match=r"no path in val\.json and test\.json, got \d+ in both"
        ):
            kind(name)(str(tmp_path / "set")).load()


def test_the_images_are_found_and_decoded(name: str, tiny: Path) -> None:
    splits = kind(name)(str(tiny)).load()
    assert splits.classes == ("a", "b", "c")
    assert {s: len(getattr(splits, s)) for s in TINY_LISTS} == TINY_LISTS
    for part in (splits.train, splits.val, splits.test):
        assert part[0][0].shape == (3, 224, 224)


def test_the_transforms_of_the_paper(name: str, tiny: Path) -> None:
    splits = kind(name)(str(tiny)).load()
    train = Compose((Resize(256), RandomCrop(224), HorizontalFlip(0.5)))
    assert splits.train.augment == train
    assert splits.val.augment is None and splits.test.augment is None
    assert splits.val.prepare == splits.test.prepare == Compose((Resize(256), CenterCrop(224)))
    assert kind(name)(str(tiny), image_size=448).load().train.augment == Compose(
        (Resize(512), RandomCrop(448), HorizontalFlip(0.5))
    )
    assert kind(name)(str(tiny), augment=False).load().train.augment is None


def test_some_images_are_missing(name: str, tiny: Path) -> None:
    for index in range(3):
        (tiny / kind(name).folders[0] / "b" / f"train{index}.png").unlink()
    with pytest.raises(DataError, match=r"got 3 of 21 missing: b/train0\.png, .*Unpack"):
        kind(name)(str(tiny)).load()


def test_missing_lists_say_where_they_are(name: str, tiny: Path) -> None:
    (tiny / "val.json").unlink()
    with pytest.raises(DataError, match=r"got no val\.json\..*github\.com/DongXzz/RoLI") as caught:
        kind(name)(str(tiny)).load()
    assert kind(name).title in str(caught.value)


def test_the_published_sizes_hold_before_a_cap(name: str, tiny: Path) -> None:
    assert len(kind(name)(str(tiny), max_per_class=1).load().train) == 3


def test_classes_that_share_a_folder_keep_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind("cub"), "published", {"train": 2, "val": 1, "test": 1})
    monkeypatch.setattr(kind("cub"), "num_published", 2)
    lists = {"train": {"x/1.png": "1", "x/2.png": "2"}, "val": {"x/3.png": "1"}}
    for split, entries in {**lists, "test": {"x/4.png": "2"}}.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(entries))
        for path in entries:
            write_image(tmp_path / "images" / path)
    assert kind("cub")(str(tmp_path)).load().classes == ("1", "2")
