"""lora_linear with a backward pass of its own: nothing is stored or computed that is not needed.

The large products are torch's, and so are the thin ones on a CPU: MKL makes them at 145 to 185
GFLOP/s a core, as fast as the large ones (180), so that a kernel in one pass has nothing to gain.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from roli_fast.ops.dispatch import lora
from roli_fast.ops.dispatch.lora import Branch, FactorGradients, Layer

_MERGE_FROM = 4
"""A merged forward reads and writes the weight once more and saves four thin products: it pays when
x and y together are at least this many times the size of the weight."""


class Plan(NamedTuple):
    """How a layer is computed: its update, the dtype, and whether in one matrix."""

    branch: Branch
    dtype: torch.dtype
    merge: bool


def lora_linear(  # noqa: PLR0913 - the layer's own quantities
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    branch: Branch,
    dtype: torch.dtype,
) -> Tensor:
    """What `ops.lora_linear` returns. Everything has been checked; `dtype` is computed in."""
    tokens = x.numel() // max(x.shape[-1], 1)
    worth = tokens * sum(weight.shape) >= _MERGE_FROM * weight.numel()
    # A 16-bit weight would swallow updates below half its spacing: these are added to the output.
    wide = weight.dtype in (torch.float32, torch.float64)
    trains = torch.is_grad_enabled() and weight.requires_grad
    merge = worth and wide and not branch.dropout and not trains and b.shape[1] <= lora.MOST_RANK
    y = _LoraLinear.apply(x, weight, bias, a, b, seed, Plan(branch, dtype, merge))
    return y.view(*x.shape[:-1], weight.shape[0])  # out here, so that callers may add in place


class _LoraLinear(torch.autograd.Function):
    """Saves x, the weight that the forward used, the factors, and S = dropout(x) A^T."""

    @staticmethod
    def forward(  # noqa: PLR0913 - the layer's own quantities
        context: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        seed: Tensor | None,
        plan: Plan,
    ) -> Tensor:
        needs = context.needs_input_grad
        with _no_autocast(x):
            flat = x.reshape(-1, x.shape[-1]).to(plan.dtype)
            if plan.merge:
                used, inner = _merged(weight, a, b, plan), None
            else:
                used = weight.to(plan.dtype)
                inner = _branch_input(flat, seed, plan.branch) @ a.to(plan.dtype).t()
            y = functional.linear(flat, used, None if bias is None else bias.to(plan.dtype))
            if inner is not None:
                _add_update(y, inner, b.to(plan.dtype), plan.branch)
        trains = needs[1] or needs[3] or needs[4]
        context.save_for_backward(
            flat if trains else None,
            used if needs[0] else None,
            *(a, b, seed),
            inner if needs[4] else None,
        )
        context.plan = plan
        context.like = (x.shape, x.dtype, weight.dtype, None if bias is None else bias.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        plan: Plan = context.plan
        x, weight, a, b, seed, inner = context.saved_tensors
        shape, x_dtype, weight_dtype, bias_dtype = context.like
        needs = context.needs_input_grad
        with _no_autocast(dy):
            dy = dy.reshape(-1, dy.shape[-1])
            dy = dy if dy.stride(1) == 1 and dy.stride(0) >= dy.shape[1] else dy.contiguous()
            a_used, b_used = a.to(plan.dtype), b.to(plan.dtype)
            grads: FactorGradients | None = None
            if needs[3] or needs[4]:
                thin = (x, dy, a_used, b_used, seed, inner)
                grads = _factor_gradients(*thin, plan.branch, with_ds=needs[0] and not plan.merge)
            dx = None
            if needs[0]:
                ds = None
                if not plan.merge:
                    ds = grads.ds if grads else _through(dy, b_used, plan.branch)
                dx = _input_gradient(dy, weight, ds, a_used, seed, plan.branch)
                dx = dx.to(x_dtype).view(shape)
            return (
                dx,
                (dy.t() @ x).to(weight_dtype) if needs[1] else None,
                dy.sum(0).to(bias_dtype) if needs[2] else None,
                grads.a.to(a.dtype) if grads is not None and needs[3] else None,
                grads.b.to(b.dtype) if grads is not None and needs[4] else None,
                *(None, None),
            )


def _no_autocast(x: Tensor) -> Any:
    """Dtypes have been chosen already."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def _merged(weight: Tensor, a: Tensor, b: Tensor, plan: Plan) -> Tensor:
    target = torch.empty(weight.shape, dtype=plan.dtype, device=weight.device)
    lora.lora_merge_([Layer(target, weight, a, b, plan.branch.gain, plan.branch.rows)])
    return target


def _branch_input(x: Tensor, seed: Tensor | None, branch: Branch) -> Tensor:
    if seed is None or not branch.dropout:
        return x
    return lora.lora_dropout(x, seed, branch.dropout)


def _slices(b: Tensor, branch: Branch) -> list[tuple[slice, slice, Tensor]]:
    """Of each range: its columns of y, its columns of S, and B_i."""
    found, rank, done = [], b.shape[1], 0
    for place, (start, stop) in enumerate(branch.rows):
        columns = slice(place * rank, (place + 1) * rank)
        found.append((slice(start, stop), columns, b[done : done + stop - start]))
        done += stop - start
    return found


def _add_update(y: Tensor, inner: Tensor, b: Tensor, branch: Branch) -> None:
    for out, columns, factor in _slices(b, branch):
        y[:, out].addmm_(inner[:, columns], factor.t(), alpha=branch.gain)


def _through(dy: Tensor, b: Tensor, branch: Branch) -> Tensor:
    """dS: dy B_i side by side, (tokens, k r)."""
    return torch.cat([dy[:, out] @ factor for out, _, factor in _slices(b, branch)], dim=1)


def _factor_gradients(  # noqa: PLR0913 - the layer's own quantities
    x: Tensor,
    dy: Tensor,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    inner: Tensor | None,
    branch: Branch,
    *,
    with_ds: bool,
) -> FactorGradients:
    if lora.fits_tensor_cores(x, dy, b, branch.rows):
        return lora.one_pass_gradients(x, dy, a, b, seed, branch, with_ds=with_ds)
    seen = _branch_input(x, seed, branch)
    inner = seen @ a.t() if inner is None else inner
    ds = _through(dy, b, branch)
    da = torch.mm(ds.t(), seen).mul_(branch.gain)
    # S^T dy is a third faster than dy^T S with MKL
    parts = [(inner[:, s].t() @ dy[:, out]).t() for out, s, _ in _slices(b, branch)]
    return FactorGradients(da, torch.cat(parts).mul_(branch.gain), ds)


def _input_gradient(  # noqa: PLR0913 - the layer's own quantities
    dy: Tensor,
    weight: Tensor,
    ds: Tensor | None,
    a: Tensor,
    seed: Tensor | None,
    branch: Branch,
) -> Tensor:
    """dy W + gain * mask(dS A); in a merged layer dy W alone."""
    if ds is None:
        return dy @ weight
    through = ds @ a
    if seed is not None and branch.dropout:
        lora.lora_dropout(through, seed, branch.dropout, out=through)
    return through.addmm_(dy, weight, beta=branch.gain)
