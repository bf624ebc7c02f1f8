"""RoLI's format: {train,val,test}.json, each a flat object {relative image path: class id}."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from itertools import chain, combinations
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import ClassVar

from roli_fast.data.source import DATASETS, DataSource
from roli_fast.data.splits import Splits
from roli_fast.data.table import SPLITS, FileTable
from roli_fast.errors import DataError, describe
from roli_fast.files import parse_json, read_text

IMAGE_FOLDERS = ("images", "Images", "256_ObjectCategories", ".")
_PROBES = 100  # how many paths decide which folder holds the images

ClassId = int | str


@DATASETS.register("json_splits")
@dataclass(frozen=True)
class JsonSplits(DataSource):
    """Images of your own, listed by three JSON files of {relative path: class id}.

    Args:
        root: the folder of train.json, val.json and test.json.
        images: the folder that the listed paths are relative to, itself relative to `root`;
            None finds it among images, Images, 256_ObjectCategories and `root` itself.
        image_size: height and width of the images given out, in pixels.
    """

    root: str
    _: KW_ONLY
    images: str | None = None

    folders: ClassVar[tuple[str, ...]] = IMAGE_FOLDERS
    """Where the images are looked for."""

    absent: ClassVar[str] = (
        "Fetch the missing images, or set `images` to the folder that holds them."
    )
    """What to do about images that are not there."""

    def load(self) -> Splits:
        """Read the lists, check that every image is there, and build the splits."""
        root = Path(self.root)
        table = self.lists(root)
        folder = self._image_folder(root, table.paths)
        missing = [path for path in table.paths if not os.path.isfile(folder / path)]
        if missing:
            got = f"{len(missing)} of {len(table.paths)} missing: {_some(missing)}"
            expected = f"every listed image below {folder}"
            raise DataError(describe("root", expected, got, self.absent))
        return self.split(table.pixels(folder), table.labels, table.rows, table.classes)

    def lists(self, root: Path) -> FileTable:
        """What the lists under `root` say."""
        return read_lists(root)

    def _image_folder(self, root: Path, paths: tuple[str, ...]) -> Path:
        names = self.folders if self.images is None else (self.images,)
        folders = [root / name for name in names]
        hits = {
            folder: sum(os.path.isfile(folder / path) for path in paths[:_PROBES])
            for folder in folders
        }
        best = max(folders, key=hits.__getitem__)
        if not hits[best]:
            looked = ", ".join(str(folder) for folder in folders)
            expected = f"the {len(paths)} listed images ({_some(list(paths))}) below {looked}"
            raise DataError(describe("images", expected, "none of the first ones", self.absent))
        return best


def read_lists(root: Path) -> FileTable:
    """Read and check the three lists under `root`; no image is looked at.

    Class ids are mapped once over all splits: integers in numeric, strings in alphabetical order.

    Raises:
        DataError: a list is missing, is not valid JSON, names a path twice or outside of the
            image folder, mixes class id types, or shares a path with another list.
    """
    lists = {split: _read_list(root / f"{split}.json") for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        shared = sorted(lists[first].keys() & lists[second].keys())
        if shared:
            got = f"{len(shared)} in both: {_some(shared)}"
            fix = "List each image once."
            raise DataError(
                describe(str(root), f"no path in {first}.json and {second}.json", got, fix)
            )
    ids = sorted(_one_type(root, set(chain.from_iterable(x.values() for x in lists.values()))))
    label = {class_id: index for index, class_id in enumerate(ids)}
    entries = {
        split: [(path, label[class_id]) for path, class_id in entries.items()]
        for split, entries in lists.items()
    }
    return FileTable.of(entries, [str(class_id) for class_id in ids])


def _read_list(file: Path) -> dict[str, ClassId]:
    try:
        text = read_text(file)
        pairs = parse_json(text, object_pairs_hook=lambda found: found)
    except OSError as error:
        expected = "train.json, val.json and test.json side by side"
        raise DataError(describe(str(file), expected, error.strerror)) from None
    except ValueError as error:
        raise DataError(describe(str(file), "valid JSON", str(error))) from None
    # An object comes as a list of pairs, an array of pairs as a list of lists.
    if (
        not isinstance(pairs, list)
        or not pairs
        or not all(isinstance(pair, tuple) for pair in pairs)
    ):
        expected = "one object {relative image path: class id}, not empty"
        raise DataError(describe(str(file), expected, f"{text.strip()[:40]!r}"))
    paths = [_relative(file, path) for path, _ in pairs]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise DataError(describe(str(file), "each path once", f"repeated: {_some(twice)}"))
    return {path: _class_id(file, path, pair[1]) for path, pair in zip(paths, pairs, strict=True)}


def _relative(file: Path, path: str) -> str:
    """The path with forward slashes; lists written on Windows have backslashes."""
    parts = PurePosixPath(path.replace("\\", "/"))
    absolute = parts.is_absolute() or PureWindowsPath(path).drive
    if absolute or ".." in parts.parts or not parts.parts:
        expected = "paths inside the image folder"
        fix = "Write them relative to that folder, without '..'."
        raise DataError(describe(str(file), expected, repr(path), fix))
    return str(parts)


def _class_id(file: Path, path: str, value: object) -> ClassId:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    expected = "class ids that are integers or strings"
    raise DataError(describe(str(file), expected, f"{json.dumps(value)} for {path}"))


def _one_type(root: Path, ids: set[ClassId]) -> Iterable:
    kinds = {type(class_id).__name__: class_id for class_id in ids}
    if len(kinds) > 1:
        got = " and ".join(repr(example) for example in kinds.values())
        fix = "Whether 1 and '1' are one class cannot be told; write all ids alike."
        raise DataError(describe(str(root), "class ids of one type in all lists", got, fix))
    return ids


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
