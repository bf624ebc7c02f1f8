"""Random starts: uniform in the Linf, L2 or L1 ball, by Philox keyed by seed and sample id.

Draws are fp32 numbers for every dtype of images. In the reference integers are int64 tensors.
"""

import math
from typing import Any

import torch
from torch import Generator, Tensor

from roli_fast.ops import fused, native
from roli_fast.ops.fused import Amount, Bounds
from roli_fast.ops.linf import ball, clamped
from roli_fast.ops.rounding import box_limits, clamp, per_sample

NORMS = {"linf": 0, "l2": 1, "l1": 2}
"""Norm -> the kernel's number of it."""

_LOW = 0xFFFFFFFF


def linf_random_start(
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: Bounds = (0.0, 1.0),
    generator: Generator | None = None,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """A uniform draw from the Linf ball around `x`, clamped to the valid range: a new tensor.

    clamp(x + U(-eps, eps), low, high), the random start of PGD (Madry et al. 2018,
    arXiv:1706.06083, section 2.1). Ball and box are those of `linf_step_`.

    The draws come from Philox4x32-10 (Salmon et al. 2011), keyed by one 64-bit draw of the
    generator: element i of a sample gets the same number in every dtype and layout and whatever
    batch the sample is in, as long as key and sample id are the same. Starts of the l2 and l1 ball
    may differ in their last bits between kernel and reference.

    Args:
        x: the original images, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a kernel).
        eps: radius in the units of the images, a number >= 0 or a tensor (B,).
        bounds: lowest and highest valid pixel value.
        generator: source of the key, on the device of `x`; None takes torch's global generator.
        sample_ids: int64 (B,), names of the samples; None takes their places in the batch.

    Returns:
        A tensor with the shape, dtype, device and layout of `x`, which autograd does not follow.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number.
    """
    return _random_start("linf", x, eps, bounds, generator, sample_ids)


def l2_random_start(
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: Bounds = (0.0, 1.0),
    generator: Generator | None = None,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """A uniform draw from the L2 ball around `x`, clamped to the valid range: a new tensor.

    x + eps (g_1 .. g_d) / sqrt(|g|^2 + 2 E), with standard normal g and a standard exponential E:
    d of the d + 2 coordinates of a uniform point on a sphere are uniform in the ball, which equals
    a Gaussian direction times U^(1/d). Coordinates are rounded towards `x`, so that no result is
    outside the ball, measured exactly; where they are below the spacing of bf16 or fp16 numbers,
    `x` stays.

    Arguments, result and errors, and what the draws depend on: see `linf_random_start`. `eps` is
    the Euclidean length over all entries of a sample, in the units of the images.
    """
    return _random_start("l2", x, eps, bounds, generator, sample_ids)


def l1_random_start(
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: Bounds = (0.0, 1.0),
    generator: Generator | None = None,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """A uniform draw from the L1 ball around `x`, clamped to the valid range: a new tensor.

    x + eps (w_1 .. w_d) / (sum |w| + E), with Laplace draws w and a standard exponential E:
    spacings of exponentials are uniform on the simplex, which equals a direction times U^(1/d).
    Rounding as in `l2_random_start`.

    Arguments, result and errors, and what the draws depend on: see `linf_random_start`. `eps` is
    the sum over all entries of a sample, in the units of the images.
    """
    return _random_start("l1", x, eps, bounds, generator, sample_ids)


def _random_start(
    norm: str,
    x: Tensor,
    eps: float | Tensor,
    bounds: Bounds,
    generator: Generator | None,
    sample_ids: Tensor | None,
) -> Tensor:
    fused.check_batch("x", x)
    fused.check_generator(generator, x)
    fused.check_sample_ids(sample_ids, x)
    eps = fused.check_amount("eps", eps.detach() if isinstance(eps, Tensor) else eps, x)
    x = x.detach() if x.requires_grad else x
    if not torch.compiler.is_compiling():
        box_limits(*bounds, x.dtype)  # before the generator moves on
    key = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=x.device)
    if native.watched():
        eps = fused.as_tensor(eps, x)
        return random_start_op(norm, x, key, sample_ids, eps, *map(float, bounds))
    return _draw(norm, x, key, sample_ids, eps, bounds)


def _draw(
    norm: str, x: Tensor, key: Tensor, sample_ids: Tensor | None, eps: Amount, bounds: Bounds
) -> Tensor:
    """A new tensor in the layout of `x`. Types, dtypes, devices and shapes have been checked.

    `key`: int64 (1,), `sample_ids`: int64 (B,), `eps`: a float, or a tensor of shape (B,) or (1,).
    """
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    known = fused.plain(x, key, sample_ids, eps)
    if not known or not native.usable(f"{norm}_random_start", x):
        return out.copy_(reference(norm, x, key, sample_ids, eps=eps, bounds=bounds))
    layout = fused.layout_of(x)
    target = out if out.is_contiguous(memory_format=layout) else x.new_empty(x.shape)
    x, radius = x.contiguous(memory_format=layout), fused.fp32(eps)
    ids = sample_ids.contiguous() if sample_ids is not None else None
    totals = None
    if x.is_cuda and norm != "linf":
        totals = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    numel = x.numel() // x.shape[0]
    plane = numel if x.is_contiguous() else numel // x.shape[1]
    native.run(
        "random_start",
        x,
        *(0 if value is None else value.data_ptr() for value in (target, x, key, ids, totals)),
        *(*native.size(x), plane, NORMS[norm]),
        *(*native.amounts([radius]), *box_limits(*bounds, x.dtype)),
    )
    return target if target is out else out.copy_(target)


@torch.library.custom_op("roli_fast::random_start", mutates_args=())
def random_start_op(
    norm: str,
    x: Tensor,
    key: Tensor,
    sample_ids: Tensor | None,
    eps: Tensor,
    low: float,
    high: float,
) -> Tensor:
    """`ops.<norm>_random_start` for a key, int64 (1,), that the caller has drawn."""
    _check(norm, x, key, sample_ids, eps)
    return _draw(norm, x, key, sample_ids, eps, (low, high))


@random_start_op.register_fake
def _(*values: Any) -> Tensor:
    _check(*values[:5])
    box_limits(*values[5:], values[1].dtype)
    return torch.empty_like(values[1])


def _check(norm: str, x: Tensor, key: Tensor, sample_ids: Tensor | None, eps: Tensor) -> None:
    fused.check_batch("x", x)
    fused.check_amount("eps", fused.for_all(eps, x), x)
    fused.check_sample_ids(sample_ids, x)
    fused.check_tensor("key", key, (torch.int64,), (1,), x.device)


def reference(
    norm: str,
    x: Tensor,
    key: Tensor,
    sample_ids: Tensor | None,
    *,
    eps: Amount,
    bounds: Bounds,
) -> Tensor:
    """What `ops.<norm>_random_start` returns for a key, in plain torch."""
    ids = torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids
    drawn, radius = words(key, ids, x), per_sample(eps, x)
    if norm == "linf":
        step = radius * _as(x, signed_uniform(drawn)).to(radius.dtype)
        return clamped((x.to(radius.dtype) + step).to(x.dtype), x, eps, bounds)
    # One more draw for each sample, of a counter beyond those of the elements.
    last = exponential(philox(key, torch.full_like(ids, -1), ids)[0]).double()
    if norm == "l2":
        draws = _as(x, gaussians(drawn))
        size = (_total(draws * draws) + 2.0 * last).sqrt()
    else:
        draws = _as(x, exponential(drawn))
        size = _total(draws) + last
        draws = torch.where((_as(x, drawn) & 1) == 1, -draws, draws)
    scale = radius.double().reshape(-1) / size * (1.0 - 2.0**-21)  # less the roundings of a kernel
    scale = scale.clamp(0.0, torch.finfo(torch.float64).max)
    delta = draws.double() * scale.reshape(-1, *[1] * (x.ndim - 1))
    low, high = ball(x, delta.abs())  # so that rounding is towards x
    start = clamp(torch.where(delta < 0, low, high), *box_limits(*bounds, x.dtype))
    return torch.where(torch.isnan(x + delta), torch.nan, start).to(x.dtype) + 0.0


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


def signed_uniform(word: Tensor) -> Tensor:
    """Odd multiples of 2^-24 in (-1, 1)."""
    signed = (word ^ 2**31) - 2**31
    return ((signed >> 7) | 1).to(torch.float32) * 2.0**-24


def exponential(word: Tensor) -> Tensor:
    """-log of odd multiples of 2^-24 in (0, 1), which are made of all but the lowest 9 bits."""
    return -((((word >> 8) | 1).double() * 2.0**-24).log()).to(torch.float32)


def gaussians(word: Tensor) -> Tensor:
    """Standard normal draws, two of each pair of neighbours in (B, n) (Box and Muller 1958)."""
    turn = word[:, 1::2]
    radius = (2.0 * exponential(word[:, 0::2]).double()).sqrt()
    place = signed_uniform((turn << 2) & _LOW).double()
    angle = (turn >> 30).double() * (math.pi / 2) + place * (math.pi / 4)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
    return pairs.flatten(1).to(torch.float32)


def _as(x: Tensor, values: Tensor) -> Tensor:
    """The first of the values of each sample, as many as `x` has and in its shape."""
    return values[:, : x.numel() // max(x.shape[0], 1)].reshape(x.shape)


def _total(sizes: Tensor) -> Tensor:
    """The sum over each sample of terms rounded up to multiples of 2^-24: exact in any order."""
    shares = (sizes.double() * 2.0**24).to(torch.int64) + 1
    return shares.reshape(shares.shape[0], -1).sum(1).double() * 2.0**-24
