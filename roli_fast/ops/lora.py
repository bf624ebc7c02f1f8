"""LoRA: the linear layer with low-rank updates, dropout by Philox, and the merge of many layers.

The layer has a backward pass of its own: nothing is stored or computed that is not needed. The
large products are torch's, and so are the thin ones on a CPU: MKL makes them at 145 to 185 GFLOP/s
a core, as fast as the large ones (180), so that a kernel in one pass has nothing to gain.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import fused, native
from roli_fast.ops.random_start import philox
from roli_fast.ops.rounding import compute_dtype

Rows = tuple[tuple[int, int], ...]
"""Disjoint ranges ((start, stop), ...) of output rows."""

MOST_RANK = 64  # kMostRank in csrc/ops.h
_MOST_SLICES = 4
_HALF = (torch.bfloat16, torch.float16)
_MERGE_FROM = 4
"""A merged forward reads and writes the weight once more and saves four thin products: it pays when
x and y together are at least this many times the size of the weight."""


PART = fused.Range("a number in [0, 1)", 0.0, 1.0 - 2.0**-53)


class Branch(NamedTuple):
    """The update of one layer: gain * (dropout(x) A_i^T) B_i^T on the rows rows[i].

    `dtype` is computed in; `merge`: weight and update in one matrix.
    """

    gain: float
    dropout: float
    rows: Rows
    dtype: torch.dtype
    merge: bool = False


class Layer(NamedTuple):
    """What is merged into one buffer; see `lora_merge_`."""

    merged: Tensor
    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float
    rows: Rows


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
    ranges = _check_layer(x, weight, bias, a, b, rows)
    scale, dropout = (
        fused.check_number("scale", scale),
        fused.check_number("dropout", dropout, PART),
    )
    if seed is not None:
        fused.check_tensor("seed", seed, (torch.int64,), (1,), x.device)
    if dropout and seed is None:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), device=x.device)
    dtype = _compute_dtype(x, weight, bias)
    branch = Branch(scale / (1.0 - dropout), dropout, ranges, dtype)
    followed = native.watched() or not all(map(fused.address, (x, weight, a, b)))
    if not followed and native.usable("lora_linear", x):
        branch = branch._replace(merge=_merge_pays(x, weight, b, branch))
        y = _LoraLinear.apply(x, weight, bias, a, b, seed, branch)
        return y.view(*x.shape[:-1], len(weight))  # out here, so that callers may add in place
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


def _merge_pays(x: Tensor, weight: Tensor, b: Tensor, branch: Branch) -> bool:
    tokens = x.numel() // max(x.shape[-1], 1)
    worth = tokens * sum(weight.shape) >= _MERGE_FROM * weight.numel()
    # A 16-bit weight would swallow updates below half its spacing: these are added to the output.
    wide = weight.dtype in (torch.float32, torch.float64)
    trains = torch.is_grad_enabled() and weight.requires_grad
    return worth and wide and not branch.dropout and not trains and b.shape[1] <= MOST_RANK


def lora_apply(
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
    y, inner = functional.linear(x, weight, bias), functional.linear(seen, a)
    for out, columns, factor in slices(b, branch.rows):
        update = branch.gain * functional.linear(inner[..., columns], factor)
        y = y + functional.pad(update, (out.start, len(weight) - out.stop))
    return y


def slices(b: Tensor, rows: Rows) -> list[tuple[slice, slice, Tensor]]:
    """Of each range: its columns of y, its columns of x A^T, and B_i."""
    found, rank, done = [], b.shape[1], 0
    for place, (start, stop) in enumerate(rows):
        columns = slice(place * rank, (place + 1) * rank)
        found.append((slice(start, stop), columns, b[done : done + stop - start]))
        done += stop - start
    return found


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
    if x.numel() == 0 or not (fused.plain(x, seed) and native.usable("lora_linear", x)):
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
    return lora_dropout(x, seed, dropout, out=_checked_empty(x, seed, dropout))


@lora_dropout_op.register_fake
def _checked_empty(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    fused.check_batch("x", x)
    fused.check_tensor("seed", seed, (torch.int64,), (1,), x.device)
    fused.check_number("dropout", dropout, PART)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    _, seed, ctx.dropout = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return lora_dropout_op(grad, *ctx.saved_tensors, ctx.dropout), None, None


lora_dropout_op.register_autograd(_backward, setup_context=_keep)


class _LoraLinear(torch.autograd.Function):
    """Saves x, the weight that the forward used, the factors, and S = dropout(x) A^T."""

    @staticmethod
    def forward(context: Any, *given: Any) -> Tensor:
        x, weight, bias, a, b, seed, branch = given
        needs, dtype = context.needs_input_grad, branch.dtype
        with _no_autocast(x):
            flat, inner = x.reshape(-1, x.shape[-1]).to(dtype), None
            if branch.merge:
                used = torch.empty(weight.shape, dtype=dtype, device=weight.device)
                merge([Layer(used, weight, a, b, branch.gain, branch.rows)])
            else:
                used = weight.to(dtype)
                inner = _branch_input(flat, seed, branch) @ a.to(dtype).t()
            y = functional.linear(flat, used, None if bias is None else bias.to(dtype))
            if inner is not None:
                for out, columns, factor in slices(b.to(dtype), branch.rows):
                    y[:, out].addmm_(inner[:, columns], factor.t(), alpha=branch.gain)
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
            dx = da = db = ds = None
            if needs[3] or needs[4]:
                thin = (x, dy, a_used, b_used, seed)
                da, db, ds = _factor_gradients(thin, inner, branch, with_ds=needs[0])
            if needs[0] and branch.merge:
                dx = dy @ weight
            elif needs[0]:  # dy W + gain * mask(dS A)
                dx = (_through(dy, b_used, branch) if ds is None else ds) @ a_used
                if seed is not None and branch.dropout:
                    lora_dropout(dx, seed, branch.dropout, out=dx)
                dx = dx.addmm_(dy, weight, beta=branch.gain)
            return (
                dx.to(x_dtype).view(shape) if dx is not None else None,
                (dy.t() @ x).to(weight_dtype) if needs[1] else None,
                dy.sum(0).to(bias_dtype) if needs[2] else None,
                da.to(a.dtype) if da is not None and needs[3] else None,
                db.to(b.dtype) if db is not None and needs[4] else None,
                *(None, None),
            )


def _no_autocast(x: Tensor) -> Any:
    """Dtypes have been chosen already."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def _branch_input(x: Tensor, seed: Tensor | None, branch: Branch) -> Tensor:
    if seed is None or not branch.dropout:
        return x
    return lora_dropout(x, seed, branch.dropout)


def _through(dy: Tensor, b: Tensor, branch: Branch) -> Tensor:
    """dS: dy B_i side by side, (tokens, k r)."""
    return torch.cat([dy[:, out] @ factor for out, _, factor in slices(b, branch.rows)], dim=1)


def _factor_gradients(
    thin: Sequence[Any], inner: Tensor | None, branch: Branch, *, with_ds: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of a and b, and dy B_i side by side, which the input's gradient may need."""
    x, dy, a, b, seed = thin
    by_products = functools.partial(_products_of_gradients, thin, inner, branch)
    if not _fits_tensor_cores(x, dy, b, branch.rows):
        return by_products()
    one_pass = functools.partial(_one_pass_gradients, *thin, branch, with_ds=with_ds)
    tokens = len(x).bit_length()  # times of one class differ by less than a factor of two
    case = (x.dtype, tokens, x.shape[1], dy.stride(0), b.shape, branch.rows)
    case += (branch.dropout > 0, with_ds, inner is None)
    return _faster(x.device, case, one_pass, by_products)()


_FASTER: dict[tuple, int] = {}
"""(device, case) -> which of its ways was faster there."""


def _faster(device: torch.device, case: tuple, *ways: Callable[[], Any]) -> Callable[[], Any]:
    """The way that took less time when this case was first met, outside a capture. Where torch is
    asked for deterministic algorithms, the first: a measurement may end otherwise the next time."""
    if torch.are_deterministic_algorithms_enabled():
        return ways[0]
    key = (device, case)
    if key not in _FASTER:
        if torch.cuda.is_current_stream_capturing():  # no time can be taken
            return ways[0]
        times = [_milliseconds(way, device) for way in ways]
        _FASTER[key] = times.index(min(times))
    return ways[_FASTER[key]]


def _milliseconds(way: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """Of `repeats` calls one after the other on a CUDA device, after some to warm up."""
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for i in range(repeats + 2):
            if i == 2:
                begin.record()
            way()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


def _products_of_gradients(
    thin: Sequence[Any], inner: Tensor | None, branch: Branch
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by products of torch."""
    x, dy, a, b, seed = thin
    seen = _branch_input(x, seed, branch)
    kept = seen @ a.t() if inner is None else inner
    ds = _through(dy, b, branch)
    da = torch.mm(ds.t(), seen).mul_(branch.gain)
    # S^T dy is a third faster than dy^T S with MKL
    parts = [(kept[:, s].t() @ dy[:, out]).t() for out, s, _ in slices(b, branch.rows)]
    return da, torch.cat(parts).mul_(branch.gain), ds


def _fits_tensor_cores(x: Tensor, dy: Tensor, b: Tensor, rows: Rows) -> bool:
    """Whether `_factor_gradients` may take the one-pass CUDA kernel."""
    if not (
        x.is_cuda and x.dtype in _HALF and fused.plain(x, dy) and native.usable("lora_linear", x)
    ):
        return False
    sizes = (x.shape[1], dy.stride(0), *(end for pair in rows for end in pair))
    return (
        all(size % 8 == 0 for size in sizes)
        and x.is_contiguous()
        and dy.stride(1) == 1
        and fused.address(x) % 16 == fused.address(dy) % 16 == 0
        and len(rows) <= _MOST_SLICES
        and len(rows) * b.shape[1] <= MOST_RANK
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def _one_pass_gradients(
    x: Tensor,
    dy: Tensor,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    branch: Branch,
    *,
    with_ds: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The CUDA kernel: reads x and dy once and makes everything, the gradients in fp32."""
    rows, total = branch.rows, b.shape[1] * len(branch.rows)
    a, turned = map(_aligned, (a, torch.block_diag(*(f.t() for _, _, f in slices(b, rows)))))
    ds = x.new_empty(x.shape[0], total) if with_ds else None
    da, db = (torch.empty(v.shape, dtype=torch.float32, device=x.device) for v in (a, b))
    sizes = (x.shape[0], x.shape[1], b.shape[0], total)
    space = native.workspace(x, torch.float32, "lora_backward_workspace", *sizes)
    native.run(
        "lora_backward",
        x,
        *(0 if v is None else v.data_ptr() for v in (x, dy, a, turned, ds, da, db, space)),
        seed.data_ptr() if seed is not None and branch.dropout else 0,
        *(x.shape[0], x.shape[1], dy.stride(0)),
        [(start, stop - start) for start, stop in rows],
        *(total, dropout_threshold(branch.dropout), branch.gain, native.CODES[x.dtype]),
    )
    return da, db, ds


def _aligned(value: Tensor) -> Tensor:
    """`value`, contiguous and at a 16-byte border, or a copy that is."""
    value = value.contiguous()
    return value if value.data_ptr() % 16 == 0 else value.clone()


def lora_merge_(
    merged: Sequence[Tensor],
    weights: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    *,
    scales: Sequence[float],
    rows: Sequence[Rows | None] | None = None,
) -> None:
    """Write weight + update of LoRA layers into second buffers, all layers in one launch.

    merged[l] = weights[l], and merged[l][rows[l][i]] += scales[l] * B_i A_i, computed in fp32 (fp64
    for fp64 weights) and rounded once. `weights` stay as they are: there is nothing to unmerge and
    nothing that drifts.

    Args:
        merged: buffers, written; shape and device of the weights, and their dtype, or bf16 or fp16
            for fp32 weights.
        weights: (out, in) each.
        a: (k r, in) each, in the dtype of the weight or fp32; see `lora_linear`.
        b: (rows in all ranges, r) each.
        scales: a number a layer.
        rows: a layer's ranges of output rows; None, for all or for one, is every row.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number, lists of different lengths, or a buffer that shares
            memory with another tensor.
    """
    ranges = _check_merge(merged, weights, a, b, scales, rows)
    with torch.no_grad():
        layers = zip(merged, weights, a, b, map(float, scales), ranges, strict=True)
        merge([Layer(*layer) for layer in layers])


def merge_reference(
    weight: Tensor, a: Tensor, b: Tensor, *, scale: float, rows: Rows, dtype: torch.dtype
) -> Tensor:
    """`weight` + scale * B_i A_i on the rows rows[i], computed in fp32 (or fp64), rounded once."""
    wide = compute_dtype(weight.dtype)
    merged, a = weight.to(wide, copy=True), a.to(wide)
    for out, columns, factor in slices(b, rows):
        merged[out] += scale * (factor.to(wide) @ a[columns])
    return merged.to(dtype)


def merge(layers: Sequence[Layer]) -> None:
    """Merge every layer: on CUDA by one launch for all that lie on one device in the same dtypes.

    Types, dtypes, devices, shapes and memory have been checked.
    """
    groups: dict[tuple, list[Layer]] = {}
    for layer in layers:
        merged, weight, a, b = (value.detach() for value in layer[:4])
        layer = Layer(merged, weight, a, b, layer.scale, layer.rows)
        if weight.is_cuda and _fits_kernel(layer):
            groups.setdefault((weight.device, weight.dtype, merged.dtype), []).append(layer)
        elif weight.dtype == merged.dtype == a.dtype == torch.float32 and fused.plain(a, b):
            _merge_in_place(layer)
        else:
            options = {"scale": layer.scale, "rows": layer.rows, "dtype": merged.dtype}
            merged.copy_(merge_reference(weight, a, b, **options))
    for (_, *dtypes), group in groups.items():
        keep: list[Tensor] = []  # converted factors, until the launch
        parts = [part for layer in group for part in _parts(layer, keep)]
        codes = [native.CODES[dtype] for dtype in dtypes]
        native.run("lora_merge", group[0].weight, parts, *codes)
        for layer in group:
            fused.finish(layer.merged, layer.merged)


def _fits_kernel(layer: Layer) -> bool:
    dense = layer.merged.is_contiguous() and layer.weight.is_contiguous()
    known = layer.merged.dtype in native.OPS["lora_merge_"] and layer.b.shape[1] <= MOST_RANK
    dense = dense and layer.weight.numel() > 0 and fused.plain(*layer[:4])
    return dense and known and native.usable("lora_merge_", layer.weight)


def _merge_in_place(layer: Layer) -> None:
    """By torch's addmm, which beats loops of our own on a CPU; see benchmarks/NOTES.md."""
    if layer.rows != ((0, layer.weight.shape[0]),):
        layer.merged.copy_(layer.weight)
    for out, columns, factor in slices(layer.b, layer.rows):
        target, a = layer.merged[out], layer.a[columns]
        torch.addmm(layer.weight[out], factor, a, alpha=layer.scale, out=target)


def _parts(layer: Layer, keep: list[Tensor]) -> list[tuple]:
    """Ranges of rows as the kernel takes them: those of the update, and between them of rank 0."""
    a, b = layer.a.float().contiguous(), layer.b.float().contiguous()
    keep += [a, b]
    parts, at = [], 0

    def add(start: int, stop: int, factors: Sequence[int], rank: int, scale: float) -> None:
        if start < stop:
            first = (layer.weight[start].data_ptr(), layer.merged[start].data_ptr())
            parts.append((*first, *factors, stop - start, a.shape[1], rank, scale))

    for out, columns, factor in sorted(slices(b, layer.rows), key=lambda found: found[0].start):
        add(at, out.start, (0, 0), 0, 0.0)
        factors = (a[columns].data_ptr(), factor.data_ptr())
        add(out.start, out.stop, factors, b.shape[1], layer.scale)
        at = out.stop
    add(at, len(layer.weight), (0, 0), 0, 0.0)
    return parts


def _check_layer(x: Any, weight: Any, bias: Any, a: Any, b: Any, rows: Any) -> Rows:
    """The rows, after checking them and the tensors of one linear layer."""
    fused.check_batch("x", x)
    _check_matrix("weight", weight, x.device)
    out, width = weight.shape
    if x.shape[-1] != width:
        expected = f"shape (..., {width}), the inputs of `weight`"
        raise ArgumentError(describe("x", expected, tuple(x.shape)))
    if bias is not None:
        fused.check_tensor("bias", bias, shape=(out,), device=x.device)
    return _check_factors(weight, a, b, rows)


def _check_merge(
    merged: Sequence[Tensor],
    weights: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[float],
    rows: Sequence[Rows | None] | None,
) -> list[Rows]:
    """Every layer's rows."""
    ranges = []
    each = (merged, weights, a, b, scales, rows or [None] * len(merged))
    for target, weight, first, second, scale, own in zip(*each, strict=True):
        _check_matrix("weights", weight)
        narrow = _HALF if weight.dtype == torch.float32 else ()
        fused.check_tensor("merged", target, (weight.dtype, *narrow), weight.shape, weight.device)
        fused.check_number("scales", scale)
        ranges.append(_check_factors(weight, first, second, own))
        fused.check_apart("merged", merged=target, weights=weight, a=first, b=second)
        if torch.is_grad_enabled():
            fused.check_no_autograd(merged=target)
    return ranges


def _check_matrix(name: str, value: Any, device: torch.device | None = None) -> None:
    fused.check_tensor(name, value, device=device)
    if value.ndim != 2:
        raise ArgumentError(describe(name, "a matrix", f"shape {tuple(value.shape)}"))


def _check_factors(weight: Tensor, a: Any, b: Any, rows: Any) -> Rows:
    """`rows` as a tuple, after checking that A and B fit it and `weight`."""
    ranges = _rows(rows, len(weight))
    covered = sum(stop - start for start, stop in ranges)
    fused.check_tensor("b", b, (weight.dtype, torch.float32), device=weight.device)
    rank = b.shape[1] if b.ndim == 2 else 0
    if rank < 1 or len(b) != covered:
        expected = f"shape ({covered}, r), a row for each of the {covered} output rows in `rows`"
        raise ArgumentError(describe("b", expected, tuple(b.shape)))
    fused.check_tensor("a", a, (b.dtype,), (len(ranges) * rank, weight.shape[1]), weight.device)
    return ranges


def _rows(rows: Sequence[Sequence[int]] | None, out: int) -> Rows:
    """`rows` as pairs; None covers everything."""
    if rows is None:
        return ((0, out),)
    ranges = tuple((index(start), index(stop)) for start, stop in rows)
    ends = [0, *(end for pair in sorted(ranges) for end in pair), out]
    if not ranges or ends != sorted(ends) or any(start == stop for start, stop in ranges):
        expected = f"disjoint ranges ((start, stop), ...) of the {out} output rows"
        fix = "q and v of a fused qkv with width d: ((0, d), (2 * d, 3 * d))."
        raise ArgumentError(describe("rows", expected, ranges, fix))
    return ranges
