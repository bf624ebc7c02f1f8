"""The LoRA kernels for CUDA compiled by g++ and run on the CPU, with mma as a plain loop.

This checks indices, tails, slices, chunks and the layout of fragments as the PTX manual has it. The
instruction itself, races and speed need a GPU, on which these kernels have never run.
"""

import ctypes
from ctypes import c_float, c_int, c_int64, c_uint32, c_void_p

import pytest
import torch
from building import EMULATOR, compiled
from references import reference
from torch import Tensor

from roli_fast.ops import lora

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEED = torch.tensor([-77])


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The emulated launches, for a grid of at most eight blocks where a grid is limited."""
    flags = ["-O2", "-fPIC", "-shared", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    output = tmp_path_factory.mktemp("cuda_on_cpu") / "lora.so"
    compiled(output, [EMULATOR / "run_lora.cpp"], [*flags, "-DRF_MAX_BLOCKS=8"])
    return ctypes.CDLL(str(output))


def at(tensor: Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())


def aligned(value: Tensor) -> Tensor:
    """A copy at a 16-byte border, with NaN on both sides of it."""
    pad = 64
    whole = torch.full((value.numel() + 3 * pad,), torch.nan, dtype=value.dtype)
    start = pad + (-(whole.data_ptr() // whole.element_size())) % 16
    out = whole[start : start + value.numel()].view(value.shape)
    return out.copy_(value)


# tokens, inputs, (start, length) of the slices, width of dy, rank of a slice
SHAPES = [
    (1, 8, ((0, 8),), 8, 1),
    (63, 40, ((0, 24),), 24, 3),
    (64, 64, ((0, 64),), 64, 16),
    (65, 72, ((8, 16),), 40, 12),
    (200, 136, ((0, 24), (48, 24)), 72, 8),
    (130, 24, ((40, 8), (0, 16), (24, 8)), 64, 5),
    (90, 80, ((0, 72),), 72, 33),
    (150, 200, ((0, 136), (136, 64)), 200, 32),
    (70, 48, ((0, 8), (8, 8), (16, 8), (24, 8)), 32, 16),
    (9000, 16, ((0, 8),), 8, 4),
]


@pytest.mark.parametrize("code", [1, 2], ids=["bf16", "fp16"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_of_the_factors(library, code, dropout):
    dtype = DTYPES[code]
    for tokens, inputs, slices, width, rank in SHAPES:
        draw = torch.Generator().manual_seed(tokens + inputs)
        total, outputs = rank * len(slices), sum(length for _, length in slices)
        sizes = ((tokens, inputs), (tokens, width), (total, inputs), (outputs, rank))
        x, dy, a, b = (aligned(torch.randn(s, generator=draw).to(dtype)) for s in sizes)
        turned, columns, done = torch.zeros(total, outputs, dtype=dtype), [], 0
        for place, (start, length) in enumerate(slices):
            part = b[done : done + length].T
            turned[place * rank : (place + 1) * rank, done : done + length] = part
            columns += range(start, start + length)
            done += length
        turned, seen = aligned(turned), reference.lora_dropout(x, SEED, dropout)
        ds = torch.full((tokens, total), torch.nan, dtype=dtype)
        da, db = torch.full((total, inputs), torch.nan), torch.full((outputs, rank), torch.nan)
        chunks = library.backward(
            *map(at, (x, dy, a, turned, ds, da, db, SEED if dropout else None)),
            *(c_int64(tokens), c_int64(inputs), c_int64(width)),
            (c_int64 * (2 * len(slices)))(*(end for pair in slices for end in pair)),
            *(c_int(len(slices)), c_int(total)),
            c_uint32(reference.dropout_threshold(dropout)),
            *(c_float(0.5), c_int(code)),
        )
        assert chunks >= 1
        # the inner products are rounded once, as those of addmm are
        inner = (seen.double() @ a.double().T).to(dtype).double()
        outer = dy[:, columns].double()
        expected_ds = outer @ turned.double().T
        expected_a = 0.5 * expected_ds.to(dtype).double().T @ seen.double()
        expected_b, done = torch.empty(outputs, rank, dtype=torch.float64), 0
        for place, (_, length) in enumerate(slices):
            rows, part = slice(done, done + length), slice(place * rank, (place + 1) * rank)
            expected_b[rows] = 0.5 * outer[:, rows].T @ inner[:, part]
            done += length
        spacing = torch.finfo(dtype).eps
        close(ds, expected_ds, spacing)
        close(da, expected_a, spacing * 0.1)  # some inner product may round to the other side
        close(db, expected_b, spacing * 0.1)


def close(found: Tensor, expected: Tensor, share: float) -> None:
    """Within a share of the largest number."""
    assert (found.double() - expected).abs().max() <= share * expected.abs().max()


def test_without_a_place_for_ds(library):
    x = aligned(torch.randn(20, 16).bfloat16())
    da, db = torch.zeros(1, 16), torch.zeros(16, 1)
    options = (c_int64(20), c_int64(16), c_int64(16), (c_int64 * 2)(0, 16), c_int(1), c_int(1))
    pointers = map(at, (x, x, x[:1], x[:1], None, da, db, None))
    assert library.backward(*pointers, *options, c_uint32(0), c_float(1.0), c_int(1)) == 1
    inner = (x @ x[:1].T).double()
    close(db, x.double().T @ inner, 1e-3)
    assert torch.equal(da, db.T)


@pytest.mark.parametrize("with_ds", [False, True])
@pytest.mark.parametrize("rows", [((8, 24),), ((0, 16), (32, 40))], ids=str)
def test_the_call_from_python(library, monkeypatch, rows, with_ds):
    """The arguments that the binding would get, against autograd in fp64."""

    def emulate(kernel, like, *arguments):
        *tensors, tokens, inputs, stride, slices, rank, threshold, gain, code = arguments
        assert kernel == "lora_backward" and like is x
        ends = [end for pair in slices for end in pair]
        library.backward(
            *(c_void_p(address or None) for address in (*tensors[:7], tensors[8])),
            *(c_int64(tokens), c_int64(inputs), c_int64(stride), (c_int64 * len(ends))(*ends)),
            *(c_int(len(slices)), c_int(rank), c_uint32(threshold), c_float(gain), c_int(code)),
        )

    monkeypatch.setattr(lora.native, "run", emulate)
    monkeypatch.setattr(lora.native, "workspace", lambda like, *sizes: like)  # it has its own
    draw, covered = torch.Generator().manual_seed(0), sum(stop - start for start, stop in rows)
    sizes = ((50, 32), (50, 48), (3 * len(rows), 32), (covered, 3))
    x, dy, a, b = (aligned(torch.randn(s, generator=draw).bfloat16()) for s in sizes)
    branch = lora.Branch(0.75, 0.3, rows, x.dtype)
    da, db, ds = lora._one_pass_gradients(x, dy, a, b, SEED, branch, with_ds=with_ds)
    assert (ds is not None) == with_ds
    wide_a, wide_b = (v.double().requires_grad_() for v in (a, b))
    weight, seen = torch.zeros(48, 32).double(), reference.lora_dropout(x, SEED, 0.3).double()
    y = lora.lora_apply(seen, seen, weight, None, wide_a, wide_b, branch)
    y.backward(dy.double())
    close(da, wide_a.grad, 2**-8)
    close(db, wide_b.grad, 2**-8)


def test_the_parts_of_a_merge_from_python():
    """Every row of the buffer belongs to one part, with the factors of its range."""
    weight, merged = torch.randn(24, 8), torch.zeros(24, 8)
    a, b, keep = torch.randn(6, 8), torch.randn(10, 3), []
    layer = lora.Layer(merged, weight, a, b, 0.5, ((18, 24), (1, 5)))
    parts = lora._parts(layer, keep)
    base, found = merged.data_ptr(), []
    for at_weight, at_merged, at_a, at_b, rows, width, rank, scale in parts:
        start = (at_merged - base) // 32
        assert at_weight - weight.data_ptr() == at_merged - base and width == 8
        factors = ((at_a - a.data_ptr()) // 32, (at_b - b.data_ptr()) // 12) if rank else None
        found.append((start, start + rows, factors, scale if rank else None))
    assert found == [
        (0, 1, None, None),
        (1, 5, (3, 6), 0.5),
        (5, 18, None, None),
        (18, 24, (0, 0), 0.5),
    ]


@pytest.mark.parametrize(("source", "target"), [(0, 0), (0, 1), (0, 2), (1, 1), (2, 2)])
def test_merge_bit_for_bit(library, source, target):
    """The sum in the order of the rank, each operation rounded to fp32, then the storage type."""
    for parts, rows, columns, rank in [
        (3, 5, 7, 2),
        (2, 70, 72, 16),
        (80, 4, 8, 3),
        (3, 64, 136, 20),
    ]:
        draw = torch.Generator().manual_seed(rows)
        weight = aligned(torch.randn(parts, rows, columns, generator=draw).to(DTYPES[source]))
        a = torch.randn(parts, rank, columns, generator=draw)
        b = torch.randn(parts, rows, rank, generator=draw)
        merged = aligned(torch.zeros(weight.shape, dtype=DTYPES[target]))
        sizes = map(c_int, (parts, rows, columns, rank))
        codes = (c_float(0.25), c_int(source), c_int(target))
        assert library.merge(*map(at, (weight, merged, a, b)), *sizes, *codes) == 0
        sums = torch.zeros(weight.shape)
        for k in range(rank):
            sums = sums + b[:, :, k : k + 1] * a[:, k : k + 1]
        expected = (weight.float() + 0.25 * sums).to(DTYPES[target])
        expected[2::3] = weight[2::3].to(DTYPES[target])
        assert torch.equal(merged, expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
def test_dropout_equals_the_reference(library, dtype, offset):
    for n in (1, 3, 4, 5, 1027, 20_000):
        x = aligned(torch.arange(1.0, n + 2).to(dtype))[offset : offset + n]
        out = aligned(torch.zeros(n + 1, dtype=dtype))[offset : offset + n]
        threshold = c_uint32(reference.dropout_threshold(0.4))
        for target in (out, x):  # the second time in place
            expected = reference.lora_dropout(x, SEED, 0.4)
            arguments = (at(target), at(x), at(SEED), c_int64(n), threshold)
            assert library.dropout(*arguments, c_int(x.element_size())) == (offset == 0)
            assert torch.equal(target, expected)
