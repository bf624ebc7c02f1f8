"""LoRA: the linear layer with low-rank updates, and dropout by Philox.

The layer has a backward pass of its own: nothing is stored or computed that is not needed. The
large products are torch's, and so are the thin ones on a CPU: MKL makes them at 145 to 185 GFLOP/s
a core, as fast as the large ones (180), so that a kernel in one pass has nothing to gain.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import checks, native
from roli_fast.ops.lora_merge import (
    MOST_RANK,
    Layer,
    Rows,
    check_device,
    check_factors,
    check_matrix,
    check_number,
    merge,
    slices,
)
from roli_fast.ops.memory import plain
from roli_fast.ops.random_start import philox

_MOST_SLICES = 4
_HALF = (torch.bfloat16, torch.float16)
_MERGE_FROM = 4
"""A merged forward reads and writes the weight once more and saves four thin products: it pays when
x and y together are at least this many times the size of the weight."""


class Branch(NamedTuple):
    """The update of one layer: gain * (dropout(x) A_i^T) B_i^T on the rows rows[i].

    `dtype` is computed in; `merge`: weight and update in one matrix.
    """

    gain: float
    dropout: float
    rows: Rows
    dtype: torch.dtype
    merge: bool = False


def lora_linear(  # noqa: PLR0913 - the layer's own quantities
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    *,
    scale: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """A linear layer with low-rank updates on ranges of its output rows (Hu et al. 2021, LoRA,
    arXiv:2106.09685, section 4.1): y = x W^T + bias, and

        y[..., rows[i]] += scale * (dropout(x) A_i^T) B_i^T        for i = 0 .. k - 1.

    Dropout sets elements of the branch's input to zero with probability `dropout` and divides the
    others by 1 - dropout. The mask is a function of `seed` and of an element's place in `x` alone
    (Philox4x32-10): the same on every device, in every dtype and for every number of threads; it is
    made anew in the backward pass instead of being stored. The layer itself never draws while a
    seed is given, so gradient checkpointing and CUDA graphs see the same mask again.

    Follows autograd with respect to x, a, b, and to weight and bias where they require grad; a
    frozen weight costs no weight gradient. Under autocast it computes in autocast's dtype.

    Args:
        x: inputs, shape (..., in), fp32, bf16, fp16 or fp64.
        weight: (out, in), in the dtype of `x` unless autocast is on.
        bias: (out,), or None.
        a: (k r, in): A_0 .. A_(k-1), one below the other; in the dtype of `weight`, or fp32.
        b: (rows in all ranges, r): B_0 .. B_(k-1), in the dtype of `a`.
        scale: what the update is multiplied with, alpha / r in LoRA.
        dropout: share of inputs that the branch does not see, in [0, 1); 0 in eval mode.
        seed: int64 (1,) on the device of `x`; None draws one from torch's global generator.
        rows: k disjoint ranges ((start, stop), ...) of output rows; None is ((0, out),).

    Returns:
        A new tensor (..., out).

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number, or ranges that overlap.
    """
    _check_layer(x, weight, bias)
    ranges = check_factors(weight, a, b, rows)
    scale, dropout = check_number("scale", scale), _probability(dropout)
    _check_seed(seed, x)
    checks.no_inference(x=x, weight=weight, a=a, b=b, **({} if bias is None else {"bias": bias}))
    if dropout and seed is None:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), device=x.device)
    dtype = _compute_dtype(x, weight, bias)
    branch = Branch(scale / (1.0 - dropout), dropout, ranges, dtype)
    followed = native.watched() or not all(map(checks.address, (x, weight, a, b)))
    if not followed and native.usable("lora_linear", x):
        return _layer(x, weight, bias, a, b, seed, branch)
    x, weight, a, b = (value.to(dtype) for value in (x, weight, a, b))
    seen = x
    if dropout and seed is not None:
        drop = lora_dropout_op if native.watched() else dropout_reference
        seen = drop(x, seed, dropout)
    return lora_apply(seen, x, weight, None if bias is None else bias.to(dtype), a, b, branch)


def _compute_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """Autocast's dtype, or the one that all have."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype != x.dtype:
            fix = f"Convert it, or use torch.autocast({kind!r})."
            raise ArgumentTypeError(
                describe(name, f"{x.dtype}, the dtype of `x`", value.dtype, fix)
            )
    return x.dtype


def lora_apply(  # noqa: PLR0913 - the layer's own quantities
    seen: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    branch: Branch,
) -> Tensor:
    """The reference of `lora_linear`, followed by autograd: x W^T + bias, and
    gain * (seen A_i^T) B_i^T added to the columns rows[i]; `seen` is x after dropout."""
    y = functional.linear(x, weight, bias)
    inner = functional.linear(seen, a)
    parts = {}
    for out, columns, factor in slices(b, branch.rows):
        update = branch.gain * functional.linear(inner[..., columns], factor)
        parts[out.start] = y[..., out] + update
    pieces, at = [], 0
    for start in sorted(parts):  # plain ints: torch.compile sorts nothing else
        pieces += [y[..., at:start], parts[start]]
        at = start + parts[start].shape[-1]
    return torch.cat([*pieces, y[..., at:]], dim=-1)


def dropout_reference(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """`x` with about a share `dropout` of its elements set to zero, the others as they are.

    Element i in row-major order stays if word i mod 4 of Philox's counter i div 4, keyed by `seed`,
    is at least `dropout_threshold(dropout)`.
    """
    counters = torch.arange((x.numel() + 3) // 4, device=x.device)
    words = torch.stack(philox(seed.reshape(1), counters, torch.zeros_like(counters)), dim=1)
    keep = words.flatten()[: x.numel()].reshape(x.shape) >= dropout_threshold(dropout)
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype, device=x.device))


def dropout_threshold(dropout: float) -> int:
    """How many of the 2^32 random words drop an element."""
    return min(round(dropout * 2**32), 2**32 - 1)


def lora_dropout(x: Tensor, seed: Tensor, dropout: float, out: Tensor | None = None) -> Tensor:
    """`dropout_reference` by a kernel where there is one, into `out` (it may be `x`)."""
    x, seed = x.detach().contiguous(), seed.detach()
    if x.numel() == 0 or not (plain(x, seed) and native.usable("lora_linear", x)):
        dropped = dropout_reference(x, seed, dropout)
        return dropped if out is None else out.copy_(dropped)
    target = torch.empty_like(x) if out is None else out
    addresses = (target.data_ptr(), x.data_ptr(), seed.data_ptr())
    threshold = dropout_threshold(dropout)
    native.run("lora_dropout", x, *addresses, x.numel(), x.element_size(), threshold)
    return target


@torch.library.custom_op("roli_fast::lora_dropout", mutates_args=())
def lora_dropout_op(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """Zeros where the mask of `ops.lora_linear` says so; see `dropout_reference`."""
    checks.batch("x", x)
    _check_seed(seed, x)
    _probability(dropout)
    return lora_dropout(x, seed, dropout, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))


@lora_dropout_op.register_fake
def _(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    checks.batch("x", x)
    _check_seed(seed, x)
    _probability(dropout)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    _, seed, ctx.dropout = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return lora_dropout_op(grad, *ctx.saved_tensors, ctx.dropout), None, None


lora_dropout_op.register_autograd(_backward, setup_context=_keep)


def _layer(  # noqa: PLR0913 - the layer's own quantities
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    branch: Branch,
) -> Tensor:
    """What `lora_linear` returns. Everything has been checked."""
    tokens = x.numel() // max(x.shape[-1], 1)
    worth = tokens * sum(weight.shape) >= _MERGE_FROM * weight.numel()
    # A 16-bit weight would swallow updates below half its spacing: these are added to the output.
    wide = weight.dtype in (torch.float32, torch.float64)
    trains = torch.is_grad_enabled() and weight.requires_grad
    merge = worth and wide and not branch.dropout and not trains and b.shape[1] <= MOST_RANK
    y = _LoraLinear.apply(x, weight, bias, a, b, seed, branch._replace(merge=merge))
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
        branch: Branch,
    ) -> Tensor:
        needs = context.needs_input_grad
        with _no_autocast(x):
            flat = x.reshape(-1, x.shape[-1]).to(branch.dtype)
            if branch.merge:
                used, inner = _merged(weight, a, b, branch), None
            else:
                used = weight.to(branch.dtype)
                inner = _branch_input(flat, seed, branch) @ a.to(branch.dtype).t()
            y = functional.linear(flat, used, None if bias is None else bias.to(branch.dtype))
            if inner is not None:
                _add_update(y, inner, b.to(branch.dtype), branch)
        trains = needs[1] or needs[3] or needs[4]
        context.save_for_backward(
            flat if trains else None,
            used if needs[0] else None,
            *(a, b, seed),
            inner if needs[4] else None,
        )
        context.branch = branch
        context.like = (x.shape, x.dtype, weight.dtype, None if bias is None else bias.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        branch: Branch = context.branch
        x, weight, a, b, seed, inner = context.saved_tensors
        shape, x_dtype, weight_dtype, bias_dtype = context.like
        needs = context.needs_input_grad
        with _no_autocast(dy):
            dy = dy.reshape(-1, dy.shape[-1])
            dy = dy if dy.stride(1) == 1 and dy.stride(0) >= dy.shape[1] else dy.contiguous()
            a_used, b_used = a.to(branch.dtype), b.to(branch.dtype)
            grads: FactorGradients | None = None
            if needs[3] or needs[4]:
                thin = (x, dy, a_used, b_used, seed, inner)
                grads = _factor_gradients(*thin, branch, with_ds=needs[0] and not branch.merge)
            dx = None
            if needs[0]:
                ds = None
                if not branch.merge:
                    ds = grads.ds if grads else _through(dy, b_used, branch)
                dx = _input_gradient(dy, weight, ds, a_used, seed, branch)
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


def _merged(weight: Tensor, a: Tensor, b: Tensor, branch: Branch) -> Tensor:
    target = torch.empty(weight.shape, dtype=branch.dtype, device=weight.device)
    merge([Layer(target, weight, a, b, branch.gain, branch.rows)])
    return target


def _branch_input(x: Tensor, seed: Tensor | None, branch: Branch) -> Tensor:
    if seed is None or not branch.dropout:
        return x
    return lora_dropout(x, seed, branch.dropout)


def _add_update(y: Tensor, inner: Tensor, b: Tensor, branch: Branch) -> None:
    for out, columns, factor in slices(b, branch.rows):
        y[:, out].addmm_(inner[:, columns], factor.t(), alpha=branch.gain)


def _through(dy: Tensor, b: Tensor, branch: Branch) -> Tensor:
    """dS: dy B_i side by side, (tokens, k r)."""
    return torch.cat([dy[:, out] @ factor for out, _, factor in slices(b, branch.rows)], dim=1)


class FactorGradients(NamedTuple):
    """Of a and b, and dy B_i side by side, which the input's gradient may need."""

    a: Tensor
    b: Tensor
    ds: Tensor | None


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
    if _fits_tensor_cores(x, dy, b, branch.rows):
        return _one_pass_gradients(x, dy, a, b, seed, branch, with_ds=with_ds)
    seen = _branch_input(x, seed, branch)
    inner = seen @ a.t() if inner is None else inner
    ds = _through(dy, b, branch)
    da = torch.mm(ds.t(), seen).mul_(branch.gain)
    # S^T dy is a third faster than dy^T S with MKL
    parts = [(inner[:, s].t() @ dy[:, out]).t() for out, s, _ in slices(b, branch.rows)]
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
        lora_dropout(through, seed, branch.dropout, out=through)
    return through.addmm_(dy, weight, beta=branch.gain)


def _fits_tensor_cores(x: Tensor, dy: Tensor, b: Tensor, rows: Rows) -> bool:
    """Whether `_factor_gradients` may take the one-pass CUDA kernel."""
    if not (x.is_cuda and x.dtype in _HALF and plain(x, dy) and native.usable("lora_linear", x)):
        return False
    sizes = (x.shape[1], dy.stride(0), *(end for pair in rows for end in pair))
    return (
        all(size % 8 == 0 for size in sizes)
        and x.is_contiguous()
        and dy.stride(1) == 1
        and checks.address(x) % 16 == checks.address(dy) % 16 == 0
        and len(rows) <= _MOST_SLICES
        and len(rows) * b.shape[1] <= MOST_RANK
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def _one_pass_gradients(  # noqa: PLR0913 - the layer's own quantities
    x: Tensor,
    dy: Tensor,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    branch: Branch,
    *,
    with_ds: bool,
) -> FactorGradients:
    """The CUDA kernel: reads x and dy once and makes everything, the gradients in fp32."""
    rows, total = branch.rows, b.shape[1] * len(branch.rows)
    turned = _turned(b, rows)
    a, ds = a.contiguous(), x.new_empty(x.shape[0], total) if with_ds else None
    da, db = (torch.empty(v.shape, dtype=torch.float32, device=x.device) for v in (a, b))
    size = native.lora_workspace(x.shape[0], x.shape[1], b.shape[0], total)
    workspace = torch.empty(size, dtype=torch.float32, device=x.device)
    native.run(
        "lora_backward",
        x,
        *(0 if v is None else v.data_ptr() for v in (x, dy, a, turned, ds, da, db, workspace)),
        seed.data_ptr() if seed is not None and branch.dropout else 0,
        *(x.shape[0], x.shape[1], dy.stride(0)),
        [(start, stop - start) for start, stop in rows],
        *(total, dropout_threshold(branch.dropout), branch.gain, native.code(x.dtype)),
    )
    return FactorGradients(da, db, ds)


def _turned(b: Tensor, rows: Rows) -> Tensor:
    """B_i^T in the rows and columns of slice i, zeros elsewhere: (k r, all rows of b)."""
    if len(rows) == 1:
        return b.t().contiguous()
    turned, done = b.new_zeros(b.shape[1] * len(rows), b.shape[0]), 0
    for _, columns, factor in slices(b, rows):
        turned[columns, done : done + len(factor)] = factor.t()
        done += len(factor)
    return turned


def _probability(value: object) -> float:
    """`dropout` is a number in [0, 1)."""
    found = check_number("dropout", value)
    if not 0.0 <= found < 1.0:
        fix = "0.1 drops a tenth of the inputs."
        raise ArgumentError(describe("dropout", "a number in [0, 1)", value, fix))
    return found


def _check_seed(value: object, x: Tensor) -> None:
    """`seed` is None or one int64 number on the device of `x`."""
    if value is None:
        return
    fix = "Draw it: torch.randint(2**62, (1,), device=x.device)."
    if not isinstance(value, Tensor):
        got = type(value).__name__
        raise ArgumentTypeError(describe("seed", "an int64 tensor (1,) or None", got, fix))
    if value.dtype != torch.int64:
        raise ArgumentTypeError(describe("seed", "an int64 tensor (1,)", value.dtype, fix))
    checks.dense("seed", value)
    if value.numel() != 1:
        raise ArgumentError(describe("seed", "one number", f"shape {tuple(value.shape)}", fix))
    check_device("seed", value, "x", x)


def _check_layer(x: object, weight: object, bias: object) -> None:
    """Images' features, weight and bias of one linear layer."""
    checks.batch("x", x)
    check_matrix("weight", weight)
    assert isinstance(x, Tensor) and isinstance(weight, Tensor)
    check_device("weight", weight, "x", x)
    out, width = weight.shape
    if x.shape[-1] != width:
        expected = f"shape (..., {width}), the inputs of `weight`"
        raise ArgumentError(describe("x", expected, tuple(x.shape)))
    if bias is None:
        return
    checks.batch("bias", bias)
    assert isinstance(bias, Tensor)
    check_device("bias", bias, "weight", weight)
    if bias.shape != (out,):
        raise ArgumentError(describe("bias", f"shape ({out},)", tuple(bias.shape)))
