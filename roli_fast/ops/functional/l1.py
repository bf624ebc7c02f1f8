"""The public L1 ops."""

from torch import Tensor

from roli_fast.ops.functional.update import update


def l1_project_(
    x_adv: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """The nearest point of the L1 ball around `x` that is within the box, in place.

    With d = x_adv - x and room_j the way from x_j to the box in the direction of d_j, the Euclidean
    projection is d_j <- sign(d_j) min(max(|d_j| - a, 0), room_j), a = 0 if that is short enough and
    otherwise the a at which the sum of |d_j| is eps (Croce & Hein 2021, "Mind the box",
    arXiv:2103.01208, section 3). No sorting: `a` is searched by Newton's steps and bisection.

    x_adv - a sign(d) is computed in fp32 (fp64 for fp64 tensors) and rounded to nearest, and `a` is
    the smallest fp32 number (of 16 significant bits for bf16 and fp16) at which the *rounded*
    result, measured in fp64, is within eps (its fp32 value) less one part in 10^12. So the result
    is inside the ball and the box in every dtype, a point that is inside already stays as it is,
    and the threshold does not depend on how it is searched. In bf16 and fp16, values of one spacing
    move together, which may leave a part of eps unused.

    A NaN in `x_adv` or `x` stays NaN and counts as 0; a NaN in `eps` gives NaN. If no threshold is
    enough (an infinite value, or an `x` outside the box by more than eps), the result is `x`, cut
    to the box. A result of zero is +0.

    Contiguous and channels_last tensors are updated where they are; other strides cost one copy of
    `x_adv`. Each sample is worked on by one CPU thread, or by one block of a GPU.

    Args:
        x_adv: the images to project, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a
            kernel); written.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball, a sum over all entries of a sample in the units of the images: a
            number >= 0, or a tensor (B,).
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; `x` or `eps` shares memory with `x_adv`; grad mode
            is on and an argument requires grad (the op has no derivative).
    """
    return update("l1_project_", {"x_adv": x_adv, "x": x}, {"eps": eps}, bounds)


def l1_step_(  # noqa: PLR0913 - the step's own quantities
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    density: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One sparse ascent step in the L1 ball, in place: APGD's, and with fixed numbers SLIDE's.

    The entries of `grad` that are largest in magnitude move, each by step_size sign(grad) / (how
    many move), so that the step is `step_size` long in L1; then `l1_project_`. An entry moves if it
    is at least as large as the one of rank floor((1 - density) d) in ascending order, counted from
    0 among the d of its sample (in fp32, at most d - 1: at least one entry), and is not 0; ties
    move together. Croce & Hein 2021, "Mind the box" (arXiv:2103.01208, section 4.1 and its code).

    APGD for L1 changes step size and density sample by sample and has no momentum: this op with
    tensors (B,) is its whole update, so there is no other.

    The moved image is rounded once to its dtype and then projected. A gradient entry that is NaN or
    infinite counts as 0 and moves nothing; for x_adv, x, eps, layouts and zero see `l1_project_`.

    Args:
        x_adv: the images to move, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a kernel);
            written.
        grad: gradient of the loss by `x_adv`, same shape, dtype and device.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball, a sum over all entries of a sample in the units of the images: a
            number >= 0, or a tensor (B,).
        step_size: L1 length of the step, in the same units and forms.
        density: which part of a sample's entries moves, in [0, 1]: a number, or a tensor (B,).
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; another argument shares memory with `x_adv`; grad
            mode is on and an argument requires grad (the op has no derivative).
    """
    amounts = {"eps": eps, "step_size": step_size, "density": density}
    return update("l1_step_", {"x_adv": x_adv, "grad": grad, "x": x}, amounts, bounds)
