"""FAB's public steps, one op a norm."""

from torch import Tensor

from roli_fast.ops.functional.update import update


def fab_linf_step_(  # noqa: PLR0913 - the step's own quantities
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    value: float | Tensor,
    alpha_max: float | Tensor,
    eta: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One step of FAB towards a linearised decision boundary, in place.

    With the plane {z: value + grad . (z - x_adv) = 0}, let d be the shortest way from `x_adv` to it
    that stays in the box and d0 the one from `x`; then

        a = min(alpha_max, |d| / (|d| + |d0|))
        x_adv <- clamp((1 - a) (x_adv + eta d) + a (x + eta d0), low, high)

    (equations 4 to 8 of Croce & Hein 2020, arXiv:1907.02044; ways shorter than 1e-8 count as 1e-8).
    In linf every entry whose normal is not 0 moves by the same level, or as far as the box lets it.
    The level is searched by Newton's method from 0, which ends at the exact one, without sorting.
    Where no point of the box lies on the plane, a way leads to the corner nearest to it.

    Sums over a sample are fp64, in an order that depends on its size and layout alone, so results
    do not depend on threads or on the batch; the rest is fp32 (fp64 for fp64 tensors), rounded once
    to nearest. An entry of `grad` that is NaN or infinite counts as 0. An infinite `value` leads
    into the corner. A NaN or an infinity in `x_adv` or `x` and a NaN in `value` or `alpha_max` make
    their whole sample NaN. A result of zero is +0.

    Contiguous and channels_last tensors are updated where they are; other strides cost one copy of
    `x_adv`. Each sample is worked on by one CPU thread, or by one block of a GPU.

    Args:
        x_adv: where the searches stand, within the box, shape (B, ...), fp32, bf16, fp16 or fp64
            (fp64 without a kernel); written.
        grad: normals of the planes, same shape, dtype and device.
        x: the original images, within the box, same shape, dtype and device.
        value: of the linear functions at `x_adv`, of either sign: a tensor (B,), or a number.
        alpha_max: largest share of x's end, in [0, 1]: a number, or a tensor (B,).
        eta: overshoot, 1 ends on the plane and 1.05 is 5 % beyond: a number >= 0 or a tensor (B,).
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; another argument shares memory with `x_adv`; grad
            mode is on and an argument requires grad (the op has no derivative).
    """
    amounts = {"value": value, "alpha_max": alpha_max, "eta": eta}
    return update("fab_linf_step_", {"x_adv": x_adv, "grad": grad, "x": x}, amounts, bounds)


def fab_l2_step_(  # noqa: PLR0913 - the step's own quantities
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    value: float | Tensor,
    alpha_max: float | Tensor,
    eta: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """As `fab_linf_step_`, with the shortest ways in the L2 norm: along the normal, in the box.

    A normal of any magnitude serves; one entry 10^38 times smaller than the others counts as 0.
    """
    amounts = {"value": value, "alpha_max": alpha_max, "eta": eta}
    return update("fab_l2_step_", {"x_adv": x_adv, "grad": grad, "x": x}, amounts, bounds)


def fab_l1_step_(  # noqa: PLR0913 - the step's own quantities
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    value: float | Tensor,
    alpha_max: float | Tensor,
    eta: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """As `fab_linf_step_`, with the shortest ways in the L1 norm: the largest normals move first.

    Each goes to the box's wall before the next moves at all; entries of one magnitude share what is
    left for them. Which magnitude is the last is found by bisection of the floats, without sorting.
    """
    amounts = {"value": value, "alpha_max": alpha_max, "eta": eta}
    return update("fab_l1_step_", {"x_adv": x_adv, "grad": grad, "x": x}, amounts, bounds)
