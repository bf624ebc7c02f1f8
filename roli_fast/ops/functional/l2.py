"""The public L2 ops."""

from torch import Tensor

from roli_fast.ops.functional.update import update


def l2_project_(
    x_adv: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Bring `x_adv` into the L2 ball around `x`, then into the box, in place.

    x_adv <- clamp(x + (x_adv - x) * min(1, eps / ||x_adv - x||_2), low, high): radial, then the
    clamp, which is what the field calls the projection (Madry et al. 2018, arXiv:1706.06083; Croce
    & Hein 2020, arXiv:2003.01690). It is not the nearest point of ball and box together; it lies in
    both, since clamping to a box that holds `x` never leads away from `x`.

    A sample inside the ball is only clamped. Any other ends inside it, measured exactly in any
    dtype: elements are rounded toward `x`, and the scale allows for the arithmetic's error, which
    costs 5e-7 of the radius at most (in fp64 2e-10). In bf16 and fp16 rounding toward `x` costs up
    to one spacing an element: keep images in fp32 where `eps` spreads to less than that.

    `eps` means its fp32 value (fp64 for fp64 tensors); below 2^-100 it counts as 0. Sums are fp64,
    in an order that depends on a sample's size and layout alone, so results do not depend on
    threads or on the batch. If `x` lies outside the box, the box wins. A NaN or an infinity in
    `x_adv` or `x`, or a NaN in `eps`, makes its whole sample NaN. A result of zero is +0.

    Contiguous and channels_last tensors (`x_adv` decides; `x` is copied to its layout where it
    differs) are updated where they are. Any other strides cost one copy of `x_adv`.

    Args:
        x_adv: the points to project, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a
            kernel); written.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball in the L2 norm of a whole image with pixels as they are, 0.5 for
            instance: a number >= 0, or a tensor (B,), one radius a sample.
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; `x` or `eps` shares memory with `x_adv`; grad mode
            is on and an argument requires grad (the op has no derivative).
    """
    return update("l2_project_", {"x_adv": x_adv, "x": x}, {"eps": eps}, bounds)


def l2_step_(  # noqa: PLR0913 - the step's own quantities
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One projected ascent step of length `step_size` along the gradient, in place.

    x_adv <- project(x_adv + step_size * grad / ||grad||_2), the norm over each sample: the L2 form
    of the PGD update of Madry et al. 2018 (arXiv:1706.06083), with the projection of `l2_project_`,
    whose guarantees, layouts and special values hold here too.

    The length of the new distance follows from three dot products, so that memory is read twice and
    written once. Where they cancel, so that the length is not known well, the sample ends a little
    deeper in the ball instead.

    A sample without a gradient (all 0) is only projected. A gradient entry that is NaN or infinite
    counts as 0, in the norm as well. A gradient of any magnitude gives a step of full length (for
    fp64 tensors from 1e-154 on). A sample that stays in the ball whichever way its elements are
    rounded gets nearest rounding; one that may touch the sphere gets rounding toward `x`. In bf16 a
    step that is shorter than half a spacing in every element moves nothing.

    Args:
        x_adv: the images to move, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a kernel).
            Not checked against ball or box; written.
        grad: gradient of the loss by `x_adv`, same shape, dtype and device.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball, in the L2 norm of a whole image: a number >= 0, or a tensor (B,).
        step_size: length of the step in the same norm and forms. NaN makes its sample NaN.
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; an argument shares memory with `x_adv`; grad mode is
            on and an argument requires grad (the step has no derivative).
    """
    tensors = {"x_adv": x_adv, "grad": grad, "x": x}
    return update("l2_step_", tensors, {"eps": eps, "step_size": step_size}, bounds)
