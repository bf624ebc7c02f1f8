"""The kernels of the LoRA ops: merge, dropout, and the gradients of the factors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from roli_fast.ops import checks, native, reference
from roli_fast.ops.dispatch.memory import finish, plain

Rows = tuple[tuple[int, int], ...]
_HALF = (torch.bfloat16, torch.float16)
MOST_RANK = 64  # kMostRank in csrc/lora.h
_MOST_SLICES = 4


class Branch(NamedTuple):
    """The update of one layer: gain * (dropout(x) A_i^T) B_i^T on the rows rows[i]."""

    gain: float
    dropout: float
    rows: Rows


def lora_dropout(x: Tensor, seed: Tensor, dropout: float, out: Tensor | None = None) -> Tensor:
    """`reference.lora_dropout` by a kernel where there is one, into `out` (it may be `x`)."""
    x, seed = x.detach().contiguous(), seed.detach()
    if x.numel() == 0 or not (plain(x, seed) and native.usable("lora_linear", x)):
        dropped = reference.lora_dropout(x, seed, dropout)
        return dropped if out is None else out.copy_(dropped)
    target = torch.empty_like(x) if out is None else out
    addresses = (target.data_ptr(), x.data_ptr(), seed.data_ptr())
    threshold = reference.dropout_threshold(dropout)
    native.run("lora_dropout", x, *addresses, x.numel(), x.element_size(), threshold)
    return target


class Layer(NamedTuple):
    """What is merged into one buffer; see `ops.lora_merge_`."""

    merged: Tensor
    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float
    rows: Rows


def lora_merge_(layers: Sequence[Layer]) -> None:
    """Merge every layer: on CUDA by one launch for all that lie on one device in the same dtypes.

    Types, dtypes, devices, shapes and memory have been checked.
    """
    groups: dict[tuple, list[Layer]] = {}
    for layer in layers:
        merged, weight, a, b = (value.detach() for value in layer[:4])
        layer = Layer(merged, weight, a, b, layer.scale, layer.rows)
        if layer.weight.is_cuda and _fits_kernel(layer):
            key = (layer.weight.device, layer.weight.dtype, layer.merged.dtype)
            groups.setdefault(key, []).append(layer)
        elif layer.weight.dtype == layer.merged.dtype == layer.a.dtype == torch.float32:
            _merge_in_place(layer)
        else:
            options = {"scale": layer.scale, "rows": layer.rows, "dtype": layer.merged.dtype}
            layer.merged.copy_(reference.lora_merge(layer.weight, layer.a, layer.b, **options))
    for (_, weight_dtype, dtype), group in groups.items():
        keep: list[Tensor] = []  # converted factors, until the launch
        parts = [part for layer in group for part in _parts(layer, keep)]
        codes = native.code(weight_dtype), native.code(dtype)
        native.run("lora_merge", group[0].weight, parts, *codes)
        for layer in group:
            finish(layer.merged, layer.merged)


def _fits_kernel(layer: Layer) -> bool:
    dense = layer.merged.is_contiguous() and layer.weight.is_contiguous()
    known = layer.merged.dtype in native.OPS["lora_merge_"] and layer.b.shape[1] <= MOST_RANK
    dense = dense and layer.weight.numel() > 0 and plain(*layer[:4])
    return dense and known and native.usable("lora_merge_", layer.weight)


def _merge_in_place(layer: Layer) -> None:
    """By torch's addmm, which beats loops of our own on a CPU; see benchmarks/NOTES.md."""
    rank, done = layer.b.shape[1], 0
    if layer.rows != ((0, layer.weight.shape[0]),):
        layer.merged.copy_(layer.weight)
    for place, (start, stop) in enumerate(layer.rows):
        a, b = layer.a[place * rank : (place + 1) * rank], layer.b[done : done + stop - start]
        target = layer.merged[start:stop]
        torch.addmm(layer.weight[start:stop], b, a, alpha=layer.scale, out=target)
        done += stop - start


def _parts(layer: Layer, keep: list[Tensor]) -> list[tuple]:
    """Ranges of rows as the kernel takes them: those of the update, and those between them."""
    width, rank = layer.weight.shape[1], layer.b.shape[1]
    a, b = layer.a.float().contiguous(), layer.b.float().contiguous()
    keep += [a, b]
    updates, done = [], 0
    for place, (start, stop) in enumerate(layer.rows):
        factors = (a.data_ptr() + place * rank * width * 4, b.data_ptr() + done * rank * 4)
        updates.append((start, stop, *factors, rank, layer.scale))
        done += stop - start
    ends = [0, *(end for start, stop, *_ in sorted(updates) for end in (start, stop))]
    ends.append(layer.weight.shape[0])
    between = [(*pair, 0, 0, 0, 0.0) for pair in zip(ends[::2], ends[1::2], strict=True)]
    parts, row_bytes = (
        [],
        (width * layer.weight.element_size(), width * layer.merged.element_size()),
    )
    for start, stop, *rest in sorted([*updates, *between]):
        if start < stop:
            weight = layer.weight.data_ptr() + start * row_bytes[0]
            merged = layer.merged.data_ptr() + start * row_bytes[1]
            parts.append((weight, merged, *rest[:2], stop - start, width, *rest[2:]))
    return parts


class FactorGradients(NamedTuple):
    """Of a and b, and dy B_i side by side, which the input's gradient may need."""

    a: Tensor
    b: Tensor
    ds: Tensor | None


def fits_tensor_cores(x: Tensor, dy: Tensor, b: Tensor, rows: Rows) -> bool:
    """Whether `factor_gradients` may take the one-pass CUDA kernel."""
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


def one_pass_gradients(  # noqa: PLR0913 - the layer's own quantities
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
        *(total, reference.dropout_threshold(branch.dropout), branch.gain, native.code(x.dtype)),
    )
    return FactorGradients(da, db, ds)


def _turned(b: Tensor, rows: Rows) -> Tensor:
    """B_i^T in the rows and columns of slice i, zeros elsewhere: (k r, all rows of b)."""
    if len(rows) == 1:
        return b.t().contiguous()
    rank, done = b.shape[1], 0
    turned = b.new_zeros(rank * len(rows), b.shape[0])
    for place, (start, stop) in enumerate(rows):
        part = b[done : done + stop - start]
        turned[place * rank : (place + 1) * rank, done : done + stop - start] = part.t()
        done += stop - start
    return turned
