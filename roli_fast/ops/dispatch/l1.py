"""The L1 ops."""

from torch import Tensor

from roli_fast.ops import checks, native, reference
from roli_fast.ops.dispatch.memory import Amount, addresses_of, dense, finish, fp32, plain


def l1_project_(x_adv: Tensor, x: Tensor, eps: Amount, bounds: tuple[float, float]) -> None:
    """Update `x_adv`. Types, dtypes, devices and shapes have been checked, memory has not.

    `eps`: a float, or a tensor of shape (B,) or (1,).
    """
    _update("l1_project_", x_adv, {"x": x}, {"eps": eps}, bounds)


def l1_step_(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Amount,
    step_size: Amount,
    density: Amount,
    bounds: tuple[float, float],
) -> None:
    """Update `x_adv`, under the same conditions."""
    amounts = {"eps": eps, "step_size": step_size, "density": density}
    _update("l1_step_", x_adv, {"grad": grad, "x": x}, amounts, bounds)


def _update(
    op: str,
    x_adv: Tensor,
    tensors: dict[str, Tensor],
    amounts: dict[str, Amount],
    bounds: tuple[float, float],
) -> None:
    """`op` by its kernel where there is one, else by the reference."""
    box = reference.box_limits(bounds[0], bounds[1], x_adv.dtype)
    addresses = addresses_of(x_adv, *tensors.values())
    numbers = all(type(value) is float for value in amounts.values())
    if not (addresses and numbers):
        checks.writable("x_adv", x_adv)
        checks.apart("x_adv", x_adv, **tensors, **amounts)
        if x_adv.numel() == 0:
            return
    usual = addresses or plain(x_adv, *tensors.values())
    if not (usual and plain(*amounts.values()) and native.usable(op, x_adv)):
        specified = getattr(reference, op.rstrip("_"))
        x_adv.copy_(specified(x_adv, *tensors.values(), **amounts, bounds=bounds))
        return
    target, *others = dense(x_adv, *tensors.values())
    values = [fp32(amount) for amount in amounts.values()]
    pointers = [value.data_ptr() for value in (target, *others)]
    numbers = native.amounts(*values)
    native.run(op.rstrip("_"), target, *pointers, *native.size(target), *numbers, *box)
    finish(x_adv, target)
