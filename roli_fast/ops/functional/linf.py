"""The public Linf ops."""

import torch
from torch import Tensor

from roli_fast.ops import checks, dispatch, library
from roli_fast.ops.library.amounts import as_amount


def linf_step_(  # noqa: PLR0913 - the step's own quantities
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One projected sign-gradient ascent step in the Linf ball, in place.

    x_adv <- clamp(clamp(x_adv + step_size * sign(grad), x - eps, x + eps), low, high): the PGD
    update of Madry et al. 2018 (arXiv:1706.06083, section 2.1), then the range of valid pixels.

    Computed in fp32 (fp64 for fp64 tensors) and rounded once. The ball's limits are rounded inward,
    so that no result is outside, in any dtype, measured exactly; `eps` means its fp32 value, and
    `bounds` mean their nearest values in the dtype of the images. If ball and box do not meet, the
    box wins. A gradient entry that is 0, NaN or infinite moves nothing; a NaN in `x_adv`, `x` or
    `eps` gives NaN; a result of zero is +0.

    Contiguous and channels_last tensors (`x_adv` decides; the others are copied to its layout where
    they differ) are updated where they are. Any other strides cost one copy of `x_adv`.

    Args:
        x_adv: the images to move, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a kernel).
            Not checked against ball or box; written.
        grad: gradient of the loss by `x_adv`, same shape, dtype and device.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball in the units of the images, 8/255 for pixels in [0, 1]: a number
            >= 0, or a tensor (B,), one radius a sample.
        step_size: length of the step, in the same units and forms.
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; `grad`, `x`, `eps` or `step_size` shares memory with
            `x_adv`; grad mode is on and an argument requires grad (the step has no derivative).
    """
    # What `functional.update` does, written out: its tables cost a small call a fifth of its time.
    checks.batch("x_adv", x_adv)
    checks.same_kind("grad", grad, x_adv)
    checks.same_kind("x", x, x_adv)
    eps = checks.amount("eps", eps, x)
    step_size = checks.amount("step_size", step_size, x)
    box = checks.pair(bounds)
    if torch.is_grad_enabled():
        checks.no_autograd(x_adv=x_adv, grad=grad, x=x)
    if checks.seen(x_adv=x_adv, grad=grad, x=x, eps=eps, step_size=step_size):
        library.linf_step_op(x_adv, grad, x, as_amount(eps, x), as_amount(step_size, x), *box)
    else:
        dispatch.linf_step_(x_adv, grad, x, eps, step_size, box)
    return x_adv
