"""What the compiled parts of the LoRA ops do on a CPU, and the GPU's where there is one."""

import pytest
import torch
from references import reference

from roli_fast import ops
from roli_fast.ops import lora
from roli_fast.ops.lora import lora_dropout_op

SEED = torch.tensor([-(2**62) - 5])
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mask_equals_the_reference(dtype):
    """Around four elements of a counter, the 512 of a block and the 32768 of a thread's share."""
    for n in (1, 3, 4, 5, 63, 511, 512, 513, 32767, 32769, 70001):
        x = torch.arange(1.0, n + 1).to(dtype)
        for dropout in (0.0, 0.1, 0.75):
            expected = reference.lora_dropout(x, SEED, dropout)
            assert torch.equal(lora.lora_dropout(x, SEED, dropout), expected)
            inside = x.clone()
            assert lora.lora_dropout(inside, SEED, dropout, out=inside) is inside
            assert torch.equal(inside, expected)


def test_threads_change_no_bit():
    x = torch.randn(97, 1013)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(lora.lora_dropout(x, SEED, 0.3))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


def test_nothing_around_the_tensor_is_written():
    buffer = torch.full((5000,), 9.0)
    for start, n in ((1, 1), (3, 17), (5, 4000)):
        buffer.fill_(9.0)
        part = buffer[start : start + n]
        lora.lora_dropout(part, SEED, 0.9, out=part)
        assert (buffer[:start] == 9.0).all() and (buffer[start + n :] == 9.0).all()


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
        shapes = [
            (500, width),
            (out, width),
            (out,),
            (len(rows or (0,)) * rank, width),
            (covered, rank),
        ]
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


def test_fake_tensors_on_cuda_keep_shape_and_device():
    """What can be said of CUDA without a device: shapes, dtypes and devices."""
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(3, 5, dtype=torch.bfloat16, device="cuda")
        seed = torch.empty(1, dtype=torch.int64, device="cuda")
        y = lora_dropout_op(x, seed, 0.3)
        assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
