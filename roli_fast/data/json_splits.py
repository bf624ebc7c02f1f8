"""RoLI's format: {train,val,test}.json, each a flat object {relative image path: class id}."""

import os
from dataclasses import KW_ONLY, dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from roli_fast.data.source import DATASETS, SPLITS, DataSource, FileTable, file_table
from roli_fast.data.splits import Splits
from roli_fast.errors import DataError, describe
from roli_fast.files import parse_json, read_text

_PROBES = 100  # how many paths decide which folder holds the images


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

    folders: ClassVar[tuple[str, ...]] = ("images", "Images", "256_ObjectCategories", ".")
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
        return self.split_files(folder, table)

    def lists(self, root: Path) -> FileTable:
        """What the lists under `root` say."""
        return read_lists(root)

    def _image_folder(self, root: Path, paths: tuple[str, ...]) -> Path:
        folders = [root / name for name in ([self.images] if self.images else self.folders)]
        for folder in folders:
            if any(os.path.isfile(folder / path) for path in paths[:_PROBES]):
                return folder
        looked = ", ".join(map(str, folders))
        expected = f"the {len(paths)} listed images ({_some(list(paths))}) below {looked}"
        raise DataError(describe("images", expected, "none of the first ones", self.absent))


def read_lists(root: Path) -> FileTable:
    """Read and check the three lists under `root`; no image is looked at.

    Class ids are mapped once over all splits: integers in numeric, strings in alphabetical order.

    Raises:
        DataError: a list is missing or no JSON object, class ids are not all integers or all
            strings, or a path is in two lists.
    """
    lists = {split: _read_list(root / f"{split}.json") for split in SPLITS}
    for (first, a), (second, b) in combinations(lists.items(), 2):
        if shared := sorted(a.keys() & b.keys()):
            expected = f"no path in {first}.json and {second}.json"
            got = f"{len(shared)} in both: {_some(shared)}"
            raise DataError(describe(str(root), expected, got, "List each image once."))
    kinds = {type(kind): (path, kind) for pairs in lists.values() for path, kind in pairs.items()}
    if len(kinds) > 1 or not kinds.keys() <= {int, str}:
        got = " and ".join(f"{kind!r} for {path}" for path, kind in kinds.values())
        fix = "Whether 1 and '1' are one class cannot be told; write all ids alike."
        raise DataError(describe(str(root), "class ids all integers or all strings", got, fix))
    return file_table({split: list(pairs.items()) for split, pairs in lists.items()})


def _read_list(file: Path) -> dict[str, Any]:
    """Path -> class id; paths with forward slashes, where Windows wrote backslashes."""
    try:
        tree = parse_json(read_text(file))
    except OSError as error:
        expected = "train.json, val.json and test.json side by side"
        raise DataError(describe(str(file), expected, error.strerror)) from None
    except ValueError as error:
        raise DataError(describe(str(file), "valid JSON", str(error))) from None
    if not isinstance(tree, dict) or not tree:
        expected = "one object {relative image path: class id}, not empty"
        raise DataError(describe(str(file), expected, repr(tree)[:40]))
    return {str(PurePosixPath(path.replace("\\", "/"))): kind for path, kind in tree.items()}


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
