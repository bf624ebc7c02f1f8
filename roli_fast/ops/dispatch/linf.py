"""The Linf ops."""

from torch import Tensor

from roli_fast.ops import checks, native, reference
from roli_fast.ops.dispatch.memory import Amount, addresses_of, dense, finish, fp32, plain


def linf_step_(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Amount,
    step_size: Amount,
    bounds: tuple[float, float],
) -> None:
    """Update `x_adv`. Types, dtypes, devices and shapes have been checked, memory has not.

    `eps` and `step_size`: a float, or a tensor of shape (B,) or (1,).
    """
    box = reference.box_limits(bounds[0], bounds[1], x_adv.dtype)
    addresses = addresses_of(x_adv, grad, x)
    if addresses and type(eps) is type(step_size) is float and native.usable("linf_step_", x_adv):
        _run(x_adv, addresses, eps, step_size, box)
        finish(x_adv, x_adv)
        return
    checks.writable("x_adv", x_adv)
    checks.apart("x_adv", x_adv, grad=grad, x=x, eps=eps, step_size=step_size)
    if x_adv.numel() == 0:
        return
    if plain(x_adv, grad, x, eps, step_size) and native.usable("linf_step_", x_adv):
        target, *others = dense(x_adv, grad, x)
        addresses = tuple(value.data_ptr() for value in (target, *others))
        _run(target, addresses, fp32(eps), fp32(step_size), box)
        finish(x_adv, target)
    else:
        result = reference.linf_step(x_adv, grad, x, eps=eps, step_size=step_size, bounds=bounds)
        x_adv.copy_(result)


def _run(
    target: Tensor,
    addresses: tuple[int, ...],
    eps: Amount,
    step_size: Amount,
    box: tuple[float, float],
) -> None:
    """The kernel. `addresses`: of x_adv, grad and x, dense in one layout and not empty."""
    amounts = native.amounts(eps, step_size)
    native.run("linf_step", target, *addresses, *native.size(target), *amounts, *box)
