"""A folder of images, one subfolder per class."""

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
    **dict.fromkeys(("eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_FILLERS = re.compile(r"[^a-z]|set|data|images?|imgs?|split|folder")
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
        root = Path(self.root)
        if not root.is_dir():
            raise DataError(describe("root", "a folder of images", f"{root}, which is not one"))
        images, left_out = _images(root)
        tops = _split_folders(root, images)
        entries: dict[str, list[tuple[str, str]]] = {split: [] for split in tops.values()}
        for path in images:
            top, *inside = path
            split = tops.get(top, tops.get("."))
            kind, *below = inside if top in tops else path
            if split is None:
                left_out[f"images in {top}" if inside else _OUTSIDE] += 1
            elif not below:
                left_out[_OUTSIDE] += 1
            else:
                entries[split].append(("/".join(path), kind))
        what = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        if what:
            logger.warning("%s: left out %s", root, what)
        if not any(entries.values()):
            fix = "Known extensions: " + " ".join(sorted(EXTENSIONS))
            raise DataError(describe("root", f"images in {root}/{_LAYOUTS}", "no image", fix))
        _check_filled(root, tops, {kind for _, kind in entries["train"]})
        fractions = {"test": self.test_fraction, "val": self.val_fraction}
        shares = {split: share for split, share in fractions.items() if split not in entries}
        return self.split_files(root, file_table(entries), shares=shares)


_OUTSIDE = "images outside of class folders"


def _images(root: Path) -> tuple[list[tuple[str, ...]], Counter[str]]:
    """The images below `root` at any depth, as the parts of their relative paths, and how many
    files of other kinds and hidden ones there are."""
    images: list[tuple[str, ...]] = []
    left_out = Counter[str]()
    for top, _, names in os.walk(root, followlinks=True):
        folder = Path(top).relative_to(root).parts
        hidden = next((part for part in folder if part[0] == "."), None)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in EXTENSIONS and hidden:
                left_out[f"images in the hidden folder {hidden}"] += 1
            elif suffix in EXTENSIONS and name[0] == ".":
                left_out["hidden images"] += 1
            elif suffix in EXTENSIONS:
                images.append((*folder, name))
            elif folder and not hidden and name[0] != ".":
                left_out[f"{suffix or 'nameless'} files"] += 1
    return images, left_out


def _split_folders(root: Path, images: list[tuple[str, ...]]) -> dict[str, str]:
    """Folder name -> its split; {".": "train"} where the folders are classes."""
    folders = {path[0] for path in images if len(path) > 1}
    nested = {path[0] for path in images if len(path) > 2}
    named = {name: split for name in sorted(folders) if (split := _split_of(name))}
    if not any(split == "train" and name in nested for name, split in named.items()):
        if len(folders) > 1 and len(named) == len(folders):
            fix = "Images lie in class folders below train, and below val and test."
            got = f"{', '.join(named)} alone"
            raise DataError(describe("root", f"{root}/{_LAYOUTS}", got, fix))
        return {".": "train"}
    for split, count in Counter(named.values()).items():
        if count > 1:
            got = " and ".join(name for name in named if named[name] == split)
            raise DataError(describe("root", f"one folder for {split!r}", f"{got} in {root}"))
    for name in sorted(folders - named.keys()):
        if name in nested or len(named) == 1:  # it looks like one more split
            got = f"images in {name} beside {' and '.join(named)} in {root}"
            fix = "Call it train, val or test, or move it away."
            raise DataError(describe("root", "images in folders of splits alone", got, fix))
    if "test" not in named.values():
        named = {name: "test" if split == "val" else split for name, split in named.items()}
    return named


def _split_of(name: str) -> str | None:
    """The split that a folder's name stands for: "train" for "TrainSet", "test" for "test2017"."""
    return _SPLIT_WORDS.get(_FILLERS.sub("", name.lower()))


def _check_filled(root: Path, tops: dict[str, str], filled: set[str]) -> None:
    """Raise for class folders without an image, among those to train on."""
    train = root / next(name for name, split in tops.items() if split == "train")
    folders = sorted(e.name for e in os.scandir(train) if e.is_dir() and e.name[0] != ".")
    if empty := [name for name in folders if name not in filled]:
        expected = f"images in every class folder of {root}"
        fix = "Add images or remove the folder."
        raise DataError(describe("root", expected, f"none in {', '.join(empty[:5])}", fix))
