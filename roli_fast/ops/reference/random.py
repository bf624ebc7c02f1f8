"""The specification of the random starts: Philox, the draws made of its words, and the starts.

Integers are int64 tensors, and every operation on numbers is one IEEE rounding, so that the draws
are the same bits everywhere. They are fp32 numbers for every dtype of images.
"""

import torch
from torch import Tensor

from roli_fast.ops.reference.linf import ball, clamped
from roli_fast.ops.reference.rounding import box_limits, compute_dtype, per_sample

Bounds = tuple[float, float]
SMALLEST = 2.0**-100
"""A smaller scale counts as 0: products with draws would be rounded by more than the slack."""
_LOW = 0xFFFFFFFF
_QUARTER_PI = 0.78539816


def linf_random_start(
    x: Tensor, key: Tensor, sample_ids: Tensor | None, *, eps: float | Tensor, bounds: Bounds
) -> Tensor:
    """What `ops.linf_random_start` returns for a key. See there."""
    radius = per_sample(eps, x)
    draws = _as(x, signed_uniform(words(key, ids_of(x, sample_ids), x))).to(radius.dtype)
    return clamped((x.to(radius.dtype) + radius * draws).to(x.dtype), x, eps, bounds)


def l2_random_start(
    x: Tensor, key: Tensor, sample_ids: Tensor | None, *, eps: float | Tensor, bounds: Bounds
) -> Tensor:
    """What `ops.l2_random_start` returns for a key. See there."""
    ids = ids_of(x, sample_ids)
    draws = _as(x, gaussians(words(key, ids, x)))
    size = (_total(draws * draws) + 2.0 * _sample_draw(key, ids).double()).sqrt()
    return _scaled(x, draws, size, eps, bounds)


def l1_random_start(
    x: Tensor, key: Tensor, sample_ids: Tensor | None, *, eps: float | Tensor, bounds: Bounds
) -> Tensor:
    """What `ops.l1_random_start` returns for a key. See there."""
    ids = ids_of(x, sample_ids)
    drawn = _as(x, words(key, ids, x))
    draws = exponential(drawn)
    size = _total(draws) + _sample_draw(key, ids).double()
    return _scaled(x, torch.where((drawn & 1) == 1, -draws, draws), size, eps, bounds)


def philox(key: Tensor, low: Tensor, high: Tensor) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): four words for each counter.

    Args:
        key: int64, 64 bits of key.
        low: int64, the lower 64 bits of the counters.
        high: int64, the upper 64 bits.
    """
    first, second, third, fourth = low & _LOW, (low >> 32) & _LOW, high & _LOW, (high >> 32) & _LOW
    key_low, key_high = key & _LOW, (key >> 32) & _LOW
    for _ in range(10):
        left, right = first * 0xD2511F53, third * 0xCD9E8D57  # int64 keeps all 64 bits
        first, second = ((right >> 32) & _LOW) ^ second ^ key_low, right & _LOW
        third, fourth = ((left >> 32) & _LOW) ^ fourth ^ key_high, left & _LOW
        key_low, key_high = (key_low + 0x9E3779B9) & _LOW, (key_high + 0xBB67AE85) & _LOW
    return [first, second, third, fourth]


def words(key: Tensor, ids: Tensor, x: Tensor) -> Tensor:
    """(B, n): words for the elements of `x`, number (element mod 4) of counter (element div 4, id).

    n is the number of elements, rounded up to a multiple of 4.
    """
    numel = x.numel() // max(x.shape[0], 1)
    counters = torch.arange((numel + 3) // 4, device=x.device).expand(x.shape[0], -1)
    drawn = philox(key, counters, ids.reshape(-1, 1).expand_as(counters))
    return torch.stack(drawn, dim=2).flatten(1)


def ids_of(x: Tensor, sample_ids: Tensor | None) -> Tensor:
    """The samples' ids, their places in the batch by default."""
    return torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids


def signed_uniform(word: Tensor) -> Tensor:
    """Odd multiples of 2^-24 in (-1, 1)."""
    signed = (word ^ 2**31) - 2**31
    return ((signed >> 7) | 1).to(torch.float32) * 2.0**-24


def exponential(word: Tensor) -> Tensor:
    """-log of odd multiples of 2^-24 in (0, 1), which are made of all but the lowest 9 bits."""
    uniform = ((word >> 8) | 1).to(torch.float32) * 2.0**-24
    bits = uniform.view(torch.int32)
    exponent = (bits - 0x3F350000) >> 23
    m = (bits - exponent * 0x800000).view(torch.float32)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = z * (0.33333334 + z * (0.2 + z * (0.14285715 + z * 0.11111111)))
    return (-exponent).to(torch.float32) * 0.6931472 - 2.0 * (s + s * series)


def gaussians(word: Tensor) -> Tensor:
    """Standard normal draws, two of each pair of neighbours in (B, n) (Box and Muller 1958)."""
    turn = word[:, 1::2]
    radius = _sqrt(2.0 * exponential(word[:, 0::2]))
    angle = signed_uniform((turn << 2) & _LOW) * _QUARTER_PI
    z = angle * angle
    sine = angle + angle * (z * (-0.16666655 + z * (0.0083321609 + z * -0.00019515296)))
    cosine = (1.0 - 0.5 * z) + z * z * (0.041666646 + z * (-0.0013887316 + z * 0.000024433157))
    a, b, quarter = radius * cosine, radius * sine, turn >> 30
    first = torch.where(quarter % 2 == 1, b, a)
    second = torch.where(quarter % 2 == 1, a, b)
    first = torch.where((quarter == 1) | (quarter == 2), -first, first)
    second = torch.where(quarter >= 2, -second, second)
    return torch.stack([first, second], dim=2).flatten(1)


def _sqrt(value: Tensor) -> Tensor:
    """The fp32 number nearest to the root; torch's own on a CPU misses it once in 200 times."""
    return value.double().sqrt().to(torch.float32)


def _as(x: Tensor, values: Tensor) -> Tensor:
    """The first of the values of each sample, as many as `x` has and in its shape."""
    return values[:, : x.numel() // max(x.shape[0], 1)].reshape(x.shape)


def _total(sizes: Tensor) -> Tensor:
    """The sum over each sample of terms rounded up to multiples of 2^-24: exact in any order."""
    shares = (sizes * 2.0**24).to(torch.int64) + 1
    return shares.reshape(shares.shape[0], -1).sum(1).double() * 2.0**-24


def _sample_draw(key: Tensor, ids: Tensor) -> Tensor:
    """One more exponential draw for each sample, of a counter beyond those of the elements."""
    return exponential(philox(key, torch.full_like(ids, -1), ids)[0])


def _scaled(x: Tensor, draws: Tensor, size: Tensor, eps: float | Tensor, bounds: Bounds) -> Tensor:
    """x + eps * draws / size, rounded towards x, in the box; NaN where `x` or `eps` is NaN."""
    dtype = compute_dtype(x.dtype)
    radius = per_sample(eps, x).double().reshape(-1).expand(x.shape[0])
    scale = (radius / size * (1.0 - 2.0**-21)).to(dtype)
    scale = torch.where(scale < SMALLEST, 0.0, scale.clamp(max=torch.finfo(dtype).max))
    delta = draws.to(dtype) * scale.reshape(-1, *[1] * (x.ndim - 1))
    ball_low, ball_high = ball(x, delta.abs())
    inside = torch.where(delta < 0, ball_low, ball_high)
    low, high = box_limits(*bounds, x.dtype)
    inside = torch.where(inside < low, low, inside)
    inside = torch.where(inside > high, high, inside)
    return torch.where(torch.isnan(x.to(dtype) + delta), torch.nan, inside).to(x.dtype) + 0.0
