"""The three sets of the RoLI paper that come as files: their published lists, and their sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from roli_fast.data.json_splits import JsonSplits, read_lists
from roli_fast.data.source import DATASETS, SPLITS, FileTable
from roli_fast.errors import DataError, describe

LISTS = "github.com/DongXzz/RoLI, folder data_splits"


@dataclass(frozen=True)
class PublishedSplits(JsonSplits):
    """Lists that must be the published ones, and the images of an archive that is public.

    Subclasses name what is expected; nothing is downloaded. A class is named after its folder.
    """

    title: ClassVar[str]
    published: ClassVar[tuple[int, int, int]]  # train, val and test images
    num_published: ClassVar[int]  # classes

    def lists(self, root: Path) -> FileTable:
        """The lists under `root`; raises DataError unless they have the published sizes."""
        gone = [f"{split}.json" for split in SPLITS if not (root / f"{split}.json").is_file()]
        if gone:
            fix = f"RoLI's lists of {self.title} are in its repository ({LISTS}): put them there."
            expected = f"train.json, val.json and test.json in {root}"
            raise DataError(describe("root", expected, f"no {', '.join(gone)}", fix))
        table = read_lists(root)
        found = _sizes([len(table.rows[split]) for split in SPLITS], len(table.classes))
        if found != (published := _sizes(self.published, self.num_published)):
            fix = "Restore them; other lists are read with the data set json_splits."
            expected = f"RoLI's lists of {self.title}: {published}"
            raise DataError(describe("root", expected, found, fix))
        return table._replace(classes=_folders(table))


@DATASETS.register("caltech256")
@dataclass(frozen=True)
class Caltech256(PublishedSplits):
    """Caltech-256 with its clutter class: 14,649 / 771 / 15,187 images of 257 classes.

    Expects train.json, val.json and test.json in `root`, and beside them the folder
    256_ObjectCategories of the archive of that name.
    """

    title = "Caltech-256"
    folders = ("256_ObjectCategories", ".")
    absent = "Unpack 256_ObjectCategories.tar in root, or set `images`."
    published = (14_649, 771, 15_187)
    num_published = 257


@DATASETS.register("cub")
@dataclass(frozen=True)
class Cub(PublishedSplits):
    """CUB-200-2011: 5,394 / 600 / 5,794 images of 200 birds.

    Expects train.json, val.json and test.json in `root`, and beside them the folder images of
    the archive CUB_200_2011.tgz; `root` may be the unpacked CUB_200_2011 itself.
    """

    title = "CUB-200-2011"
    folders = ("images", ".")
    absent = "Unpack CUB_200_2011.tgz and set root to its CUB_200_2011, or set `images`."
    published = (5_394, 600, 5_794)
    num_published = 200


@DATASETS.register("stanford_dogs")
@dataclass(frozen=True)
class StanfordDogs(PublishedSplits):
    """Stanford Dogs: 10,800 / 1,200 / 8,580 images of 120 breeds.

    The images come from ImageNet, so a network pretrained there may have seen them. Expects
    train.json, val.json and test.json in `root`, and beside them the folder Images of the
    archive images.tar.
    """

    title = "Stanford Dogs"
    folders = ("Images", ".")
    absent = "Unpack images.tar in root, so that it holds Images, or set `images`."
    published = (10_800, 1_200, 8_580)
    num_published = 120


def _sizes(images: Sequence[int], classes: int) -> str:
    return f"{' / '.join(map(str, images))} images of {classes} classes"


def _folders(table: FileTable) -> tuple[str, ...]:
    """The folder of each class; its id where a class has several, or a folder several classes."""
    found: dict[int, set[str]] = {}
    for path, label in zip(table.paths, table.labels.tolist(), strict=True):
        found.setdefault(label, set()).add(path.rpartition("/")[0])
    names = tuple(min(found[label]) for label in range(len(table.classes)))
    own = all(len(folders) == 1 for folders in found.values()) and len(set(names)) == len(names)
    return names if own and all(names) else table.classes
