"""linf_step_'s own short way: a step on small images takes a quarter less time than by `update`."""

from torch import Tensor

from roli_fast.ops import native, reference
from roli_fast.ops.dispatch.memory import Amount, addresses_of, finish
from roli_fast.ops.dispatch.update import Bounds, launch, update


def linf_step_(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: Amount, step_size: Amount, bounds: Bounds
) -> None:
    """`update` of "linf_step_", under the same conditions."""
    addresses = addresses_of(x_adv, grad, x)
    if addresses and type(eps) is type(step_size) is float and native.usable("linf_step_", x_adv):
        box = reference.box_limits(*bounds, x_adv.dtype)
        launch("linf_step", x_adv, addresses, (eps, step_size), box)
        finish(x_adv, x_adv)
        return
    tensors = {"x_adv": x_adv, "grad": grad, "x": x}
    update("linf_step_", tensors, {"eps": eps, "step_size": step_size}, bounds)
