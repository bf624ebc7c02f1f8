"""Out of memory: an error that names the argument to lower."""

import contextlib
from collections.abc import Iterator

import torch

from roli_fast.errors import OutOfMemoryError, describe

IN_PARTS = "Lower it, or raise accumulate, with --resume as well: the update stays the same."

_WORDS = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""Of the RuntimeErrors by which the CPU's allocator and cuBLAS say so; they have no own type."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


@contextlib.contextmanager
def memory_guard(
    name: str, size: int, device: torch.device, *, where: str = "", fix: str = "Lower it."
) -> Iterator[None]:
    """Within, running out of memory ends in an error that names an argument.

    Args:
        name: the argument.
        size: its value, a number of images.
        device: whose memory it is.
        where: stands before the message, "stage 'probe': " say.
        fix: stands behind it: what helps.

    Raises:
        OutOfMemoryError: from torch's error, which says how much was asked for.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        expected = f"a number of images that fit into the memory of {device}"
        raise OutOfMemoryError(where + describe(name, expected, size, fix)) from error
