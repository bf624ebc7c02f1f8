"""The public random starts."""

from contextlib import nullcontext

import torch
from torch import Generator, Tensor
from torch._subclasses.fake_tensor import FakeTensor

from roli_fast.ops import checks, dispatch, library, reference
from roli_fast.ops.library.amounts import as_amount

Bounds = tuple[float, float]
_PLAIN = nullcontext()  # nothing here that autograd could follow


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
    arXiv:1706.06083, section 2.1). Limits are rounded inward as in `linf_step_`.

    The draws come from Philox4x32-10 (Salmon et al. 2011), keyed by one 64-bit draw of the
    generator: element i of a sample gets the same number, bit for bit, on every device, in every
    dtype and layout and whatever batch the sample is in, as long as key and sample id are the same.

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
    `x` stays. Logarithm and sine are polynomials of our own: starts are the same bits everywhere.

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


def _random_start(  # noqa: PLR0913 - the start's own quantities
    norm: str,
    x: Tensor,
    eps: float | Tensor,
    bounds: Bounds,
    generator: Generator | None,
    sample_ids: Tensor | None,
) -> Tensor:
    checks.batch("x", x)
    checks.generator(generator, x)
    checks.sample_ids(sample_ids, x)
    box = checks.pair(bounds)
    seen = checks.seen(x=x, sample_ids=sample_ids, eps=eps)
    with torch.no_grad() if seen or x.requires_grad or isinstance(eps, Tensor) else _PLAIN:
        eps = checks.amount("eps", eps, x)
        if not torch.compiler.is_compiling():
            reference.box_limits(*box, x.dtype)  # before the generator moves on
        with x.fake_mode if isinstance(x, FakeTensor) else _PLAIN:
            key = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=x.device)
        if seen:
            return library.random_start_op(norm, x, key, sample_ids, as_amount(eps, x), *box)
        return dispatch.random_start(norm, x, key, sample_ids, eps, box)
