"""APGD's public momentum steps. Two ops, not one with a norm: they share no kernel."""

from torch import Tensor

from roli_fast.ops.functional.update import update


def apgd_linf_step_(  # noqa: PLR0913 - the step's own quantities
    x_adv: Tensor,
    x_prev: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    momentum: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One step of APGD in the Linf ball: the new iterate takes the memory of the old one.

    With P the clamp to ball and box, u = P(x_adv + step_size * sign(grad)) and a = `momentum`,

        x_prev <- P(x_adv + a * (u - x_adv) + (1 - a) * (x_adv - x_prev))

    (Croce & Hein 2020, arXiv:2003.01690, Algorithm 1, line 7). `x_adv` is read only, so two buffers
    serve the whole attack without a copy:

        x_adv, x_prev = ops.apgd_linf_step_(x_adv, x_prev, grad, x, ...), x_adv

    With momentum 1, the first step, `x_prev` is not looked at and may be `torch.empty_like(x)`.

    Rounding, limits, special values of `grad` and layouts are those of `linf_step_` (here `x_prev`
    decides about the layout); u itself is not rounded to the dtype. A NaN in `x_adv` or, with
    momentum below 1, in `x_prev` gives NaN.

    Args:
        x_adv: the current iterate, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a
            kernel).
        x_prev: the one before, same shape, dtype and device; written.
        grad: gradient of the loss by `x_adv`, same shape, dtype and device.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball in the units of the images: a number >= 0, or a tensor (B,).
        step_size: length of the step, in the same units and forms.
        momentum: a in [0, 1], 0.75 in the paper and 1 for the first step: a number or a tensor
            (B,).
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_prev`, which now holds the new iterate.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; an argument shares memory with `x_prev`; grad mode
            is on and an argument requires grad (the step has no derivative).
    """
    tensors = {"x_prev": x_prev, "x_adv": x_adv, "grad": grad, "x": x}
    amounts = {"eps": eps, "step_size": step_size, "momentum": momentum}
    return update("apgd_linf_step_", tensors, amounts, bounds)


def apgd_l2_step_(  # noqa: PLR0913 - the step's own quantities
    x_adv: Tensor,
    x_prev: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    momentum: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One step of APGD in the L2 ball: the new iterate takes the memory of the old one.

    As `apgd_linf_step_`, with u = P(x_adv + step_size * grad / ||grad||_2) and P the projection of
    `l2_project_`, radial then clamped (Croce & Hein 2020, arXiv:2003.01690, Algorithm 1, line 7).
    Guarantees, layouts and special values are those of `l2_step_`; u is not rounded to the dtype. A
    NaN in `x_adv` or, with momentum below 1, in `x_prev` makes its whole sample NaN.

    Arguments, result and errors: see `apgd_linf_step_`. `eps` and `step_size` are lengths in the L2
    norm of a whole image.
    """
    tensors = {"x_prev": x_prev, "x_adv": x_adv, "grad": grad, "x": x}
    amounts = {"eps": eps, "step_size": step_size, "momentum": momentum}
    return update("apgd_l2_step_", tensors, amounts, bounds)
