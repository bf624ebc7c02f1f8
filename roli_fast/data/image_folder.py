"""A folder of images, one subfolder per class."""

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from torch import Tensor

from roli_fast.data import stratify
from roli_fast.data.source import DATASETS, DataSource, check_shares
from roli_fast.data.splits import Splits
from roli_fast.data.table import FileTable
from roli_fast.errors import DataError, describe

EXTENSIONS = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".jfif", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_LAYOUTS = "<class>/*.jpg, or {train,val,test}/<class>/*.jpg with val or test left out"


@DATASETS.register("image_folder")
@dataclass(frozen=True)
class ImageFolder(DataSource):
    """Images under root/{train,val,test}/<class>/, or under root/<class>/ to be split here.

    What is missing is cut from the training images, class by class and reproducibly. With train
    and val alone, the published val is the test split, as for ImageNet, and val is cut.
    Label ids follow the sorted class names of all splits. Hidden files are left out.

    Args:
        root: the folder; `valid` and `validation` also name the validation split.
        val_fraction: share of the images that are split here for validation, in (0, 1).
        test_fraction: share for the test, in (0, 1).
        image_size: height and width of the images given out, in pixels.
    """

    root: str
    _: KW_ONLY
    val_fraction: float = 0.1
    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Raises ArgumentError for impossible fractions."""
        super().__post_init__()
        check_shares(val_fraction=self.val_fraction, test_fraction=self.test_fraction)

    def load(self) -> Splits:
        """List the images and split them; none is opened."""
        root = Path(self.root)
        found = {
            split: {folder.name: _images(folder, root) for folder in _folders(top)}
            for split, top in self._split_folders(root).items()
        }
        if not any(paths for by_class in found.values() for paths in by_class.values()):
            fix = "Known extensions: " + " ".join(sorted(EXTENSIONS))
            raise DataError(describe("root", f"images in {root}/{_LAYOUTS}", "no image", fix))
        _check_empty(root, found["train"])
        classes = sorted(set().union(*found.values()))
        label = {name: index for index, name in enumerate(classes)}
        entries = {
            split: [(path, label[name]) for name, paths in by_class.items() for path in paths]
            for split, by_class in found.items()
        }
        table = FileTable.of(entries, classes)
        rows = self._complete(table, root)
        return self.split(table.pixels(root), table.labels, rows, classes)

    def _split_folders(self, root: Path) -> dict[str, Path]:
        """Split -> folder; a flat root is all "train"."""
        if not root.is_dir():
            raise DataError(describe("root", "a folder of images", f"{root}, which is not one"))
        named = [folder for folder in _folders(root) if folder.name in _SPLIT_NAMES]
        if not any(folder.name == "train" and _folders(folder) for folder in named):
            return {"train": root}
        splits: dict[str, Path] = {}
        for folder in named:
            split = _SPLIT_NAMES[folder.name]
            if split in splits:
                got = f"{splits[split].name} and {folder.name} in {root}"
                raise DataError(describe("root", f"one folder for {split!r}", got))
            splits[split] = folder
        return splits

    def _complete(self, table: FileTable, root: Path) -> dict[str, Tensor]:
        """The rows of all three splits; what is missing is cut from the training rows."""
        rows = dict(table.rows)
        share = self.val_fraction
        pixels = table.pixels(root)

        def cut(purpose: str, share: float) -> tuple[Tensor, Tensor]:
            return stratify.cut(
                rows["train"], table.labels, pixels, purpose=purpose, seed=self.seed, share=share
            )

        if "test" not in rows and "val" in rows:
            rows["test"] = rows.pop("val")
        elif "test" not in rows:
            rows["train"], rows["test"] = cut("test", self.test_fraction)
            share /= 1 - self.test_fraction
        if "val" not in rows:
            rows["train"], rows["val"] = cut("val", share)
        return rows


def _folders(top: Path) -> list[Path]:
    return sorted(Path(e.path) for e in os.scandir(top) if e.is_dir() and e.name[0] != ".")


def _images(folder: Path, root: Path) -> list[str]:
    """The images below `folder` at any depth, relative to `root`, with forward slashes."""
    found = []
    for top, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if name[0] != "."]
        prefix = Path(top).relative_to(root).as_posix()
        found += [
            f"{prefix}/{name}"
            for name in names
            if name[0] != "." and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return found


def _check_empty(root: Path, by_class: dict[str, list[str]]) -> None:
    empty = sorted(name for name, paths in by_class.items() if not paths)
    if empty:
        expected = f"images in every class folder of {root}"
        fix = "Add images or remove the folder."
        raise DataError(describe("root", expected, f"none in {', '.join(empty[:5])}", fix))
