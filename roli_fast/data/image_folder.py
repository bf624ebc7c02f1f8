"""A folder of images, one subfolder per class."""

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
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
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}
_FILLERS = {"", "set", "data", "images", "image", "imgs", "img", "split", "folder"}
_LAYOUTS = "<class>/*.jpg, or {train,val,test}/<class>/*.jpg with val or test left out"

_NO_CLASSES = {((), split) for split in _SPLIT_WORDS.values()}
"""What `_split_name` says of a folder's name that is a split's and nothing else."""

logger = logging.getLogger("roli_fast.data")


@DATASETS.register("image_folder")
@dataclass(frozen=True)
class ImageFolder(DataSource):
    """Images under root/{train,val,test}/<class>/, or under root/<class>/ to be split here.

    What is missing is cut from the training images, class by class and reproducibly. With train
    and val alone, the published val is the test split, as for ImageNet, and val is cut.
    Label ids follow the sorted class names of all splits. Hidden files and those of other kinds
    are left out, and counted in the log.

    Args:
        root: the folder; splits may be called training, Test, valid, dev, val2017 and the like.
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
        root, left_out = Path(self.root), Counter[str]()
        tops = _split_folders(root, left_out)
        found = {
            split: {folder.name: _images(folder, root, left_out) for folder in _folders(top)}
            for split, top in tops.items()
        }
        for folder in {root, *tops.values()}:
            _count_outside(folder, left_out)
        what = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common() if count)
        if what:
            logger.warning("%s: left out %s", root, what)
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

    def _complete(self, table: FileTable, root: Path) -> dict[str, Tensor]:
        """The rows of all three splits; what is missing is cut from the training rows."""
        rows = dict(table.rows)
        if "test" not in rows and "val" in rows:
            rows["test"] = rows.pop("val")
        fractions = {"test": self.test_fraction, "val": self.val_fraction}
        shares = {name: share for name, share in fractions.items() if name not in rows}
        return rows | stratify.cut(
            rows["train"],
            table.labels,
            table.pixels(root),
            table.classes,
            seed=self.seed,
            shares=shares,
        )


def _split_folders(root: Path, left_out: Counter[str]) -> dict[str, Path]:
    """Split -> folder; a flat root is all "train"."""
    if not root.is_dir():
        raise DataError(describe("root", "a folder of images", f"{root}, which is not one"))
    folders = _folders(root)
    groups: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for folder in folders:
        rest, split = _split_name(folder.name)
        if split:
            groups.setdefault(rest, {}).setdefault(split, []).append(folder)
    # "seg_train" is a split beside "seg_test" alone, "train" and "Training_set" always
    for rest, group in sorted(groups.items()):
        if (not rest or len(group) > 1) and any(map(_folders, group.get("train", []))):
            break
    else:
        _check_classes(root, folders)
        return {"train": root}
    if "eval" in group:
        group.setdefault("val" if "test" in group else "test", []).extend(group.pop("eval"))
    for split, named in group.items():
        if len(named) > 1:
            got = f"{' and '.join(folder.name for folder in named)} in {root}"
            raise DataError(describe("root", f"one folder for {split!r}", got))
    splits = {split: folder for split, (folder,) in group.items()}
    others = [folder for folder in folders if folder not in splits.values()]
    _check_neighbours(root, splits, others, left_out)
    return splits


def _split_name(name: str) -> tuple[tuple[str, ...], str | None]:
    """What a folder's name says besides the split, and the split that it names: for "seg_train"
    ("seg",) and "train", for "Test2" () and "test"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = [word.removesuffix("set") for word in re.findall(r"[a-z]+", spaced)]
    splits = [_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS]
    rest = tuple(word for word in words if word not in _SPLIT_WORDS | dict.fromkeys(_FILLERS))
    return rest, splits[0] if len(splits) == 1 else None


def _check_classes(root: Path, folders: Sequence[Path]) -> None:
    """Refuse folders that are all called after splits: they are no classes."""
    names = [folder.name for folder in folders]
    if len(names) > 1 and all(_split_name(name) in _NO_CLASSES for name in names):
        fix = "Images lie in class folders below train, and below val and test."
        raise DataError(describe("root", f"{root}/{_LAYOUTS}", f"{', '.join(names)} alone", fix))


def _check_neighbours(
    root: Path, splits: dict[str, Path], others: Sequence[Path], left_out: Counter[str]
) -> None:
    """Refuse a folder beside `splits` that looks like one, and count images in others."""
    for folder in others:
        classes = any(_images(inner, root) for inner in _folders(folder))
        images = _images(folder, root)
        if classes or (images and len(splits) == 1):
            known = " and ".join(sorted(top.name for top in splits.values()))
            got = f"images in {folder.name} beside {known} in {root}"
            fix = "Call it train, val or test, or move it away."
            raise DataError(describe("root", "images in folders of splits alone", got, fix))
        left_out[f"images in {folder.name}"] += len(images)


def _folders(top: Path) -> list[Path]:
    return sorted(Path(e.path) for e in os.scandir(top) if e.is_dir() and e.name[0] != ".")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _images(folder: Path, root: Path, left_out: Counter[str] | None = None) -> list[str]:
    """The images below `folder` at any depth, relative to `root`, with forward slashes; other files
    are counted in `left_out`, by kind."""
    found = []
    others = Counter[str]() if left_out is None else left_out
    for top, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if name[0] != "."]
        prefix = Path(top).relative_to(root).as_posix()
        for name in names:
            if name[0] == ".":
                others["hidden images"] += _is_image(name)
            elif _is_image(name):
                found.append(f"{prefix}/{name}")
            else:
                others[f"{os.path.splitext(name)[1].lower() or 'nameless'} files"] += 1
    return found


def _count_outside(folder: Path, left_out: Counter[str]) -> None:
    """Count images beside class folders and hidden folders of images, which are no classes."""
    for entry in os.scandir(folder):
        if entry.is_dir() and entry.name[0] == ".":
            with contextlib.suppress(OSError):  # another user's .Trash, say
                inside = sum(map(_is_image, os.listdir(entry.path)))
                left_out[f"images in {entry.name}"] += inside
        elif not entry.is_dir() and _is_image(entry.name):
            left_out["images outside of class folders"] += 1


def _check_empty(root: Path, by_class: dict[str, list[str]]) -> None:
    empty = sorted(name for name, paths in by_class.items() if not paths)
    if empty:
        expected = f"images in every class folder of {root}"
        fix = "Add images or remove the folder."
        raise DataError(describe("root", expected, f"none in {', '.join(empty[:5])}", fix))
