"""The random starts."""

import torch
from torch import Tensor

from roli_fast.ops import native, reference
from roli_fast.ops.dispatch.memory import Amount, addresses_of, fp32, layout_of, plain

Bounds = tuple[float, float]
_NORMS = {"linf": 0, "l2": 1, "l1": 2}


def random_start(  # noqa: PLR0913 - the op's own arguments
    norm: str,
    x: Tensor,
    key: Tensor,
    sample_ids: Tensor | None,
    eps: Amount,
    bounds: Bounds,
) -> Tensor:
    """A new tensor in the layout of `x`. Types, dtypes, devices and shapes have been checked.

    `key`: int64 (1,), `sample_ids`: int64 (B,), `eps`: a float, or a tensor of shape (B,) or (1,).
    """
    op = f"{norm}_random_start"
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    if sample_ids is None and type(eps) is float and x.is_cpu and native.usable(op, x):
        addresses = addresses_of(x, key, out)
        if addresses:  # the usual call
            place, key_place, out_place = addresses
            numel = x.numel() // x.shape[0]
            pointers = (out_place, place, key_place, 0, 0)
            numbers = (*native.size(x), numel, _NORMS[norm], (0, eps, 0))
            native.run(
                "random_start", x, *pointers, *numbers, *reference.box_limits(*bounds, x.dtype)
            )
            return out
    if not (plain(x, key, sample_ids, eps) and native.usable(op, x)):
        return out.copy_(getattr(reference, op)(x, key, sample_ids, eps=eps, bounds=bounds))
    layout = layout_of(x)
    target = out if out.is_contiguous(memory_format=layout) else x.new_empty(x.shape)
    _run(norm, target, x.contiguous(memory_format=layout), key, sample_ids, eps, bounds)
    return target if target is out else out.copy_(target)


def _run(  # noqa: PLR0913 - the kernel's own arguments
    norm: str,
    out: Tensor,
    x: Tensor,
    key: Tensor,
    sample_ids: Tensor | None,
    eps: Amount,
    bounds: Bounds,
) -> None:
    """The kernel: `out` and `x` dense in one layout, and not empty."""
    ids = sample_ids.contiguous() if sample_ids is not None else None
    radius = fp32(eps)
    totals = None
    if x.is_cuda and norm != "linf":
        totals = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    numel = x.numel() // x.shape[0]
    plane = numel if x.is_contiguous() else numel // x.shape[1]
    native.run(
        "random_start",
        x,
        *(0 if value is None else value.data_ptr() for value in (out, x, key, ids, totals)),
        *(*native.size(x), plane, _NORMS[norm]),
        *native.amounts(radius),
        *reference.box_limits(bounds[0], bounds[1], x.dtype),
    )
