"""A folder of images, one subfolder per class."""

import contextlib
import logging
import os
import re
from collections import Counter
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from roli_fast.data.source import DATASETS, DataSource, file_table
from roli_fast.data.splits import Splits
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

    def load(self) -> Splits:
        """List the images and split them; none is opened."""
        root, left_out = Path(self.root), Counter[str]()
        if not root.is_dir():
            raise DataError(describe("root", "a folder of images", f"{root}, which is not one"))
        tops = _split_folders(root, left_out)
        if "val" in tops and "test" not in tops:
            tops["test"] = tops.pop("val")
        entries = {
            split: [
                (path, folder.name)
                for folder in _folders(top)
                for path in _images(folder, root, left_out)
            ]
            for split, top in tops.items()
        }
        for folder in {root, *tops.values()}:
            _count_outside(folder, left_out)
        what = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common() if count)
        if what:
            logger.warning("%s: left out %s", root, what)
        if not any(entries.values()):
            fix = "Known extensions: " + " ".join(sorted(EXTENSIONS))
            raise DataError(describe("root", f"images in {root}/{_LAYOUTS}", "no image", fix))
        filled = {name for _, name in entries["train"]}
        if empty := [f.name for f in _folders(tops["train"]) if f.name not in filled]:
            expected = f"images in every class folder of {root}"
            fix = "Add images or remove the folder."
            raise DataError(describe("root", expected, f"none in {', '.join(empty[:5])}", fix))
        fractions = {"test": self.test_fraction, "val": self.val_fraction}
        shares = {split: share for split, share in fractions.items() if split not in tops}
        return self.split_files(root, file_table(entries), shares=shares)


def _split_folders(root: Path, left_out: Counter[str]) -> dict[str, Path]:
    """Split -> folder; a flat root is all "train". Images beside the splits are counted."""
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
        if len(folders) > 1 and sum(map(len, groups.get((), {}).values())) == len(folders):
            names = ", ".join(folder.name for folder in folders)
            fix = "Images lie in class folders below train, and below val and test."
            raise DataError(describe("root", f"{root}/{_LAYOUTS}", f"{names} alone", fix))
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


def _check_neighbours(
    root: Path, splits: dict[str, Path], others: list[Path], left_out: Counter[str]
) -> None:
    """Refuse a folder beside `splits` that looks like one, and count images in others."""
    for folder in others:
        images = _images(folder, root, Counter())
        if any(path.count("/") > 1 for path in images) or (images and len(splits) == 1):
            known = " and ".join(sorted(top.name for top in splits.values()))
            got = f"images in {folder.name} beside {known} in {root}"
            fix = "Call it train, val or test, or move it away."
            raise DataError(describe("root", "images in folders of splits alone", got, fix))
        left_out[f"images in {folder.name}"] += len(images)


def _split_name(name: str) -> tuple[tuple[str, ...], str | None]:
    """What a folder's name says besides the split, and the split that it names: for "seg_train"
    ("seg",) and "train", for "Test2" () and "test"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = [word.removesuffix("set") for word in re.findall(r"[a-z]+", spaced)]
    splits = [_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS]
    rest = tuple(word for word in words if word not in _SPLIT_WORDS and word not in _FILLERS)
    return rest, splits[0] if len(splits) == 1 else None


def _folders(top: Path) -> list[Path]:
    return sorted(Path(e.path) for e in os.scandir(top) if e.is_dir() and e.name[0] != ".")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _images(folder: Path, root: Path, left_out: Counter[str]) -> list[str]:
    """The images below `folder` at any depth, relative to `root`, with forward slashes; other files
    are counted in `left_out`, by kind."""
    found = []
    for top, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if name[0] != "."]
        prefix = Path(top).relative_to(root).as_posix()
        for name in names:
            if name[0] == ".":
                left_out["hidden images"] += _is_image(name)
            elif _is_image(name):
                found.append(f"{prefix}/{name}")
            else:
                left_out[f"{os.path.splitext(name)[1].lower() or 'nameless'} files"] += 1
    return found


def _count_outside(folder: Path, left_out: Counter[str]) -> None:
    """Count images beside class folders and hidden folders of images, which are no classes."""
    for entry in os.scandir(folder):
        if entry.is_dir() and entry.name[0] == ".":
            with contextlib.suppress(OSError):  # another user's .Trash, say
                inside = sum(map(_is_image, os.listdir(entry.path)))
                left_out[f"images in the hidden folder {entry.name}"] += inside
        elif not entry.is_dir() and _is_image(entry.name):
            left_out["images outside of class folders"] += 1
