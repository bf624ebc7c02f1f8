"""How far a share that was counted on some images may be from that of all."""

import math

from roli_fast.errors import ArgumentError, describe

_Z = 1.959963984540054  # of 95 %


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share, `right` of `count` images (Wilson 1927, JASA 22, 209).

    For images drawn at random; in contrast to a standard error it is right at 0 and 1 too.
    """
    if not 0 <= right <= count or count < 1:
        raise ArgumentError(describe("right", f"a number of 0 to {count} images", right))
    share, square = right / count, _Z**2 / count
    middle = share + square / 2
    spread = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low, high = (middle - spread) / (1 + square), (middle + spread) / (1 + square)
    return (0.0 if right == 0 else low), (1.0 if right == count else high)
