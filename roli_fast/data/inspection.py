"""A look at every image before anything is built on them: what cannot be read, and what is there.

Each file is read once, in threads: a quarter of a millisecond of a CPU for one of 100 kB, where the
disk keeps up. To decode it too costs ten times as much.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat

from torch import Tensor

from roli_fast.data.pixels import FilePixels
from roli_fast.data.splits import ImageDataset
from roli_fast.data.torch_datasets import DatasetPixels
from roli_fast.errors import DataError
from roli_fast.running.progress import progress_bar

_BLOCK = 64  # images a task
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
    found: list[str | DataError] = []
    blocks = [(d, rows) for d in datasets.values() for rows in d.ids.split(_BLOCK)]
    total = sum(map(len, datasets.values()))
    # nothing is shown of what takes less than a second
    bar = progress_bar("looking at the images", total=total, quiet=quiet, delay=1.0, leave=False)
    with bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for seen in pool.map(_look, blocks, repeat(decode)):
            found += seen
            bar.update(len(seen))
    bad = [str(one) for one in found if isinstance(one, DataError)]
    if len(bad) == 1:
        raise DataError(bad[0])
    if bad:
        shown = bad[:_SHOWN] + [f"and {len(bad) - _SHOWN} more"] * (len(bad) > _SHOWN)
        raise DataError(f"{len(bad)} images cannot be used:\n" + "\n".join(shown))
    hashes = map(str, found)
    return {name: list(islice(hashes, len(dataset))) for name, dataset in datasets.items()}


def _look(block: tuple[ImageDataset, Tensor], decode: bool) -> list[str | DataError]:
    """The hash of each image, or what is wrong with it."""
    pixels, found = block[0].pixels, []
    for row in block[1].tolist():
        try:
            if isinstance(pixels, (FilePixels, DatasetPixels)):
                found.append(pixels.look(row, decode=decode))
            else:
                image = pixels.read(row).cpu().contiguous().numpy()
                found.append(hashlib.sha256(image.tobytes()).hexdigest())
        except DataError as error:
            found.append(error)
    return found
