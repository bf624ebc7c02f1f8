"""Out of memory: which argument is too large, and what would fit."""

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch

from roli_fast.errors import OutOfMemoryError, RoliFastError, describe
from roli_fast.running.memory_meters import CpuMeter, CudaMeter

_WORDS = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""Of the RuntimeErrors by which the CPU's allocator and cuBLAS say so; they have no own type."""

_SHRINK = 0.75
"""What is left of a number of images that was expected to fit and did not."""


class Meter(Protocol):
    """Measures one device."""

    name: str
    tries: int
    """How often a number of images near the limit may be tried."""

    def free(self) -> int | None:
        """Bytes that are left, with a margin; None where nobody tells."""
        ...

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes that `work` holds at once beyond what is held before it."""
        ...


def meter_of(device: torch.device) -> Meter:
    """What measures this device."""
    return CudaMeter(device) if device.type == "cuda" else CpuMeter(Path("/"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


@contextlib.contextmanager
def explained(  # noqa: PLR0913 - what the message says
    name: str,
    size: int,
    work: Callable[[int], object],
    meter: Meter,
    *,
    parts: int = 1,
    where: str = "",
    fix: str = "",
    later: int = 0,
    first: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """Within, running out of memory ends in an error that names an argument and what would fit.

    Args:
        name: the argument.
        size: its value, a number of images.
        parts: into how many runs of `work` they are split, one after another or on other devices.
        work: does what is within with so many images, and leaves nothing behind.
        meter: of the device.
        where: stands before the message, "stage 'probe': " say.
        fix: stands behind it: what else would help.
        later: bytes that more will be needed than `work` takes.
        first: called before anything is tried; what must not be lost is saved here.

    Raises:
        OutOfMemoryError: in place of torch's error.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        _let_go(error)
    first()
    try:
        fits, tried = largest(-(-size // parts), work, meter, later=later)
    except RoliFastError:  # a stop, say
        raise
    except Exception:  # what would fit is a help, and no reason to end otherwise
        fits, tried = None, False
    fits = None if fits is None else fits * parts
    expected = f"a number of images that fit into the memory of {meter.name}"
    advice = f"{_advice(fits, tried)} {fix}".rstrip()
    raise OutOfMemoryError(where + describe(name, expected, size, advice))


def _advice(fits: int | None, tried: bool) -> str:
    if fits is None:
        return "Lower it; what would fit cannot be measured here."
    if fits == 0:
        return "No number would fit: take a smaller model or smaller images."
    return f"About {fits} would fit ({'tried once' if tried else 'estimated, not tried'})."


def largest(
    size: int, work: Callable[[int], object], meter: Meter, *, later: int = 0
) -> tuple[int | None, bool]:
    """How many images would fit, fewer than `size`, and whether that many were tried.

    Memory grows by the image: two small numbers of them are measured, and what is left is shared
    out; batch normalisation in training needs two. Where all seem to fit, though they did not, it
    is three quarters of them. None where the device does not tell what is left, 0 where no number
    fits.
    """
    low, high = (2, 4) if size > 4 else (1, 2)
    peaks = [_peak(count, work, meter) for count in (low, high) if count < size]
    if not peaks or peaks[0] is None:
        return _one(size, work, meter)
    free = meter.free()
    if free is None:
        return None, False
    if len(peaks) < 2 or peaks[1] is None:
        return low, True
    each = max(peaks[1] - peaks[0], 1) / (high - low)
    fixed = max(peaks[0] - low * each, 0)
    count = int((free - later - fixed) / each)
    count = max(count if count < size else int(_SHRINK * size), low)
    for _ in range(meter.tries):
        if count <= high or _peak(count, work, meter) is not None:
            return count, True
        count = max(int(count * _SHRINK), low)
    return count, False


def _one(size: int, work: Callable[[int], object], meter: Meter) -> tuple[int, bool]:
    """Whether a single image fits where not even the smallest number measured did."""
    fits = size > 1 and _peak(1, work, meter) is not None
    return int(fits), True


def _peak(count: int, work: Callable[[int], object], meter: Meter) -> int | None:
    """The most bytes that so many images take at once; None where they do not fit."""
    try:
        return meter.peak(lambda: work(count))
    except (RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, RoliFastError) and not is_out_of_memory(error):
            raise  # a stop, say; else torch may word it otherwise, or refuse so few images
        _let_go(error)
    return None


def _let_go(error: BaseException | None) -> None:
    """Free the tensors that the frames of an error, and of what led to it, hold on to."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
