"""How far an accuracy measured on some images may be from that on all of them."""

import math
from statistics import NormalDist

from roli_fast.errors import ArgumentError, describe


def wilson_interval(
    right: int, count: int, *, level: float = 0.95, population: int | None = None
) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927, JASA 22, 209-212).

    With p = right / count and z the normal quantile, (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) /
    (1 + z^2/n). Unlike p -+ z times the standard error it stays inside [0, 1] and has a width at 0
    and 1.

    Where the images are a random part of a finite set and the accuracy on that set is asked for,
    give its size as `population`: n becomes n (N - 1) / (N - n), so that all images leave no doubt,
    and the interval is cut to what the images seen still allow. A choice that is balanced over the
    classes varies less than this interval allows for. It knows nothing of seeds or training runs.

    Args:
        right: images classified right.
        count: images seen, at least one.
        level: how often such an interval holds the truth, in (0, 1).
        population: images of the whole set, at least `count`; None for an infinite one.

    Returns:
        (low, high), shares in [0, 1].

    Raises:
        ArgumentError: a number is out of range.
    """
    _check(right, count, level, population)
    share, size = right / count, float(count)
    if population is not None:
        if count == population:
            return share, share
        size = count * (population - 1) / (population - count)
    z = NormalDist().inv_cdf((1 + level) / 2)
    shrink = 1 + z * z / size
    middle = (share + z * z / (2 * size)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / size + (z / (2 * size)) ** 2)
    lowest, highest = 0.0, 1.0
    if population is not None:
        lowest, highest = right / population, 1 - (count - right) / population
    low = lowest if right == 0 else max(middle - half, lowest)
    return low, highest if right == count else min(middle + half, highest)


def _check(right: int, count: int, level: float, population: int | None) -> None:
    if count < 1:
        raise ArgumentError(describe("count", "at least one image", count))
    if not 0 <= right <= count:
        raise ArgumentError(describe("right", f"a number of images from 0 to {count}", right))
    if not 0 < level < 1:
        raise ArgumentError(describe("level", "a share in (0, 1), 0.95 say", level))
    if population is not None and population < count:
        raise ArgumentError(describe("population", f"at least the {count} images seen", population))
