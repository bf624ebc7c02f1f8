"""LoRA's kernels: what Python hands to those for CUDA, dropout on the CPU, and a GPU where there is
one. What the CUDA kernels compute: test_sanitizers.py."""

import ctypes
from ctypes import c_float, c_int, c_int64, c_uint32, c_void_p

import pytest
import torch
from building import EMULATOR, compiled
from references import reference
from torch import Tensor

from roli_fast import ops
from roli_fast.ops import lora

SEED = torch.tensor([-(2**62) - 5])
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The emulated launches."""
    output = tmp_path_factory.mktemp("cuda_on_cpu") / "lora.so"
    compiled(output, [EMULATOR / "run_lora.cpp"], ["-O2", "-fPIC", "-shared"])
    return ctypes.CDLL(str(output))


def aligned(value: Tensor) -> Tensor:
    """A copy at a 16-byte border."""
    whole = torch.empty(value.numel() + 16, dtype=value.dtype)
    start = (-(whole.data_ptr() // whole.element_size())) % 16
    return whole[start : start + value.numel()].view(value.shape).copy_(value)


@pytest.mark.parametrize("with_ds", [False, True])
@pytest.mark.parametrize("rows", [((8, 24),), ((0, 16), (32, 40))], ids=str)
def test_the_call_of_the_backward_kernel(library, monkeypatch, rows, with_ds):
    """The arguments that the binding would get, against autograd in fp64."""

    def emulate(kernel, like, *arguments):
        *tensors, tokens, inputs, stride, slices, rank, threshold, gain, code = arguments
        assert kernel == "lora_backward" and like is x
        assert not any(address % 16 for address in tensors[:4])  # what is read 16 bytes at a time
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
    a = torch.cat([a.new_zeros(1), a.flatten()])[1:].view(a.shape)  # a view that starts anywhere
    branch = lora.Branch(0.75, 0.3, rows, x.dtype)
    da, db, ds = lora._one_pass_gradients(x, dy, a, b, SEED, branch, with_ds=with_ds)
    assert (ds is not None) == with_ds
    wide_a, wide_b = (v.double().requires_grad_() for v in (a, b))
    weight, seen = torch.zeros(48, 32).double(), reference.lora_dropout(x, SEED, 0.3).double()
    y = lora.lora_apply(seen, seen, weight, None, wide_a, wide_b, branch)
    y.backward(dy.double())
    for found, expected in ((da, wide_a.grad), (db, wide_b.grad)):
        assert (found.double() - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_the_faster_way_is_measured_once_a_case(monkeypatch):
    """Not in a capture, where no time can be taken, nor where results shall be the same bits."""
    measured, capturing = [], [True]
    monkeypatch.setattr(lora, "_FASTER", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(lora, "_milliseconds", lambda way, device: (measured.append(way), way())[1])
    device, ways = torch.device("cuda", 0), (lambda: 2.0, lambda: 1.0)
    assert lora._faster(device, ("case",), *ways) is ways[0] and not measured
    capturing[0] = False
    torch.use_deterministic_algorithms(True)
    try:
        assert lora._faster(device, ("case",), *ways) is ways[0] and not measured
    finally:
        torch.use_deterministic_algorithms(False)
    assert lora._faster(device, ("case",), *ways) is ways[1] and measured == list(ways)
    capturing[0] = True
    assert lora._faster(device, ("case",), *ways) is ways[1] and len(measured) == 2
    capturing[0] = False
    lora._faster(torch.device("cuda", 1), ("case",), *ways)
    assert len(measured) == 4


def test_the_parts_of_a_merge():
    """Every row of the buffer belongs to one part, with the factors of its range."""
    weight, merged = torch.randn(24, 8), torch.zeros(24, 8)
    a, b = torch.randn(6, 8), torch.randn(10, 3)
    layer = lora.Layer(merged, weight, a, b, 0.5, ((18, 24), (1, 5)))
    found = []
    for at_weight, at_merged, at_a, at_b, rows, width, rank, scale in lora._parts(layer, []):
        start = (at_merged - merged.data_ptr()) // 32
        assert at_weight - weight.data_ptr() == at_merged - merged.data_ptr() and width == 8
        factors = ((at_a - a.data_ptr()) // 32, (at_b - b.data_ptr()) // 12) if rank else None
        found.append((start, start + rows, factors, scale if rank else None))
    assert found == [
        (0, 1, None, None),
        (1, 5, (3, 6), 0.5),
        (5, 18, None, None),
        (18, 24, (0, 0), 0.5),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mask_equals_the_reference(kernels, dtype):
    """Around four elements of a counter, the 512 of a block and the 32768 of a thread's share; on
    every number of threads; and nothing around it is written."""
    before = torch.get_num_threads()
    try:
        for n in (1, 3, 4, 5, 511, 512, 513, 32767, 32769, 70001):
            buffer = torch.full((n + 2,), 9.0).to(dtype)
            x = buffer[1 : n + 1].copy_(torch.arange(1.0, n + 1))
            for dropout, threads in ((0.0, 1), (0.1, 2), (0.75, 3)):
                torch.set_num_threads(threads)
                expected = reference.lora_dropout(x, SEED, dropout)
                assert torch.equal(lora.lora_dropout(x, SEED, dropout), expected)
            assert lora.lora_dropout(x, SEED, dropout, out=x) is x
            assert torch.equal(x, expected) and buffer[0] == buffer[-1] == 9.0
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_equals_the_cpu(dtype, dropout):
    """The layer with its gradients, and the merge; sizes that the tensor cores take, and others."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for width, out, rank, rows in (
        (64, 96, 16, ((0, 32), (64, 96))),
        (40, 72, 5, None),
        (33, 9, 3, None),
    ):
        draw = torch.Generator().manual_seed(width)
        covered = sum(stop - start for start, stop in rows or ((0, out),))
        factors = [(len(rows or (0,)) * rank, width), (covered, rank)]
        shapes = [(500, width), (out, width), (out,), *factors]
        wide = [torch.randn(s, generator=draw, dtype=torch.float64) / s[-1] ** 0.5 for s in shapes]
        results = []
        for device, kind in (("cpu", torch.float64), ("cuda", dtype), ("cuda", dtype)):
            tensors = [v.to(dtype).to(device, kind).requires_grad_() for v in wide]
            options = {"dropout": dropout, "seed": SEED.to(device), "rows": rows}
            y = ops.lora_linear(*tensors, scale=0.7, **options)
            y.backward(torch.linspace(-1, 1, y.numel()).to(y).view_as(y))
            buffer = torch.empty_like(tensors[1], requires_grad=False)
            lists = [[tensors[i]] for i in (1, 3, 4)]
            ops.lora_merge_([buffer], *lists, scales=[0.7], rows=[rows])
            results.append([v.detach().cpu() for v in (y, *(t.grad for t in tensors), buffer)])
        spacing = torch.finfo(dtype).eps
        for exact, found, again in zip(*results, strict=True):
            assert torch.equal(found, again)  # deterministic
            assert (found.double() - exact).abs().max() <= 16 * spacing * exact.abs().max()


@pytest.mark.gpu
def test_a_captured_layer_runs_again_with_a_new_seed():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randn(64, 32, device="cuda", dtype=torch.bfloat16)
    seed = torch.tensor([1], device="cuda")
    lora.lora_dropout(x, seed, 0.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = lora.lora_dropout(x, seed, 0.5)
    seed.fill_(2)
    graph.replay()
    assert torch.equal(y.cpu(), reference.lora_dropout(x.cpu(), torch.tensor([2]), 0.5))
