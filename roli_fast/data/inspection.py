"""A look at every image before anything is built on them: what cannot be read, and what is there.

Each file is read once, in threads: a quarter of a millisecond of a CPU for one of 100 kB, where the
disk keeps up. To decode it too costs ten times as much.
"""

import hashlib
from collections.abc import Mapping
from itertools import islice

from roli_fast.data.pixels import FilePixels, Pixels, in_threads
from roli_fast.data.splits import ImageDataset
from roli_fast.data.torch_datasets import DatasetPixels
from roli_fast.errors import DataError

_SHOWN = 100  # files of an error


def inspect_images(
    datasets: Mapping[str, ImageDataset], *, decode: bool, quiet: bool = False
) -> dict[str, list[str]]:
    """The hash of every image's content, of files of their bytes: equal hashes, equal pixels.

    Args:
        datasets: splits by name.
        decode: decode the files too, so that none ends the work hours later; else their headers are
            read, which is enough where the hashes are known.
        quiet: no progress bar.

    Returns:
        Name -> the hashes of a split, in its order.

    Raises:
        DataError: names every file that cannot be read.
    """

    def look(place: tuple[Pixels, int]) -> str | DataError:
        pixels, row = place
        try:
            if isinstance(pixels, (FilePixels, DatasetPixels)):
                return pixels.look(row, decode=decode)
            image = pixels.read(row).cpu().contiguous().numpy()
            return hashlib.sha256(image.tobytes()).hexdigest()
        except DataError as error:
            return error

    places = [(split.pixels, row) for split in datasets.values() for row in split.ids.tolist()]
    found = in_threads(look, places, "looking at the images", quiet=quiet)
    bad = [str(one) for one in found if isinstance(one, DataError)]
    if len(bad) == 1:
        raise DataError(bad[0])
    if bad:
        shown = bad[:_SHOWN] + [f"and {len(bad) - _SHOWN} more"] * (len(bad) > _SHOWN)
        raise DataError(f"{len(bad)} images cannot be used:\n" + "\n".join(shown))
    hashes = map(str, found)
    return {name: list(islice(hashes, len(split))) for name, split in datasets.items()}
