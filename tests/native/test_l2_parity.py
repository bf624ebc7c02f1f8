"""The L2 and APGD kernels beside the reference: sizes around every block, and threads."""

import sys
from pathlib import Path

import pytest
import torch

from roli_fast import ops

sys.path.append(str(Path(__file__).resolve().parents[1] / "ops"))
from l2_cases import OPS, amounts, batch, same_numbers  # noqa: E402
from tolerances import OTHER_SUMS  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Around the 16 lanes, the 512 of a block, the 4096 of a chunk and the 32768 of a thread's share.
SHAPES = [
    *((1, n) for n in (1, 15, 16, 17, 31, 511, 512, 513, 4095, 4096, 4097, 32769, 70001)),
    *((3, 5, 7, 11), (9, 3, 32, 32), (5, 1), (7, 9363), (300, 2)),
]

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_equals_the_reference(name, dtype):
    op = OPS[name]
    share = 0.0 if "linf" in name else OTHER_SUMS
    for shape in SHAPES:
        for eps, samples in ((0.5, None), (20.0, None), (2.0, shape[0])):
            tensors, options = batch(op, shape, dtype), amounts(op, eps, samples)
            expected = op.reference(*tensors, **options)
            assert same_numbers(op.run(*tensors, **options), expected, share), (shape, eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_every_number_of_threads_gives_the_same_bits(name, dtype):
    op, before = OPS[name], torch.get_num_threads()
    for shape in ((2, 3, 97, 101), (12, 3, 97, 101), (1, 200_001)):
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                tensors = batch(op, shape, dtype)
                results.append(op.run(*tensors, **amounts(op, 0.9, shape[0])))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", OPS)
def test_nothing_around_the_tensor_is_written(name):
    op, buffer = OPS[name], torch.full((5000,), 9.0)
    for start, n in ((1, 1), (3, 17), (5, 4500)):
        buffer.fill_(9.0)
        tensors = batch(op, (1, n), torch.float32)
        target = buffer[start : start + n].view(1, n).copy_(tensors[0])
        op.run(target, *tensors[1:], **amounts(op, 0.1))
        assert (buffer[:start] == 9.0).all() and (buffer[start + n :] == 9.0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_cuda_equals_the_cpu(name, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    op, chosen = OPS[name], ops.backend(name, "cuda", dtype)
    assert chosen.name == "native", chosen.reason
    for shape in SHAPES:
        tensors, options = batch(op, shape, dtype), amounts(op, 0.7, shape[0])
        on_gpu = [value.cuda() for value in tensors]
        numbers = {key: value.cuda() for key, value in options.items()}
        with torch.cuda.stream(torch.cuda.Stream()):
            moved = op.run(*on_gpu, **numbers)
            again = op.run(*[value.cuda() for value in tensors], **numbers)
        torch.cuda.synchronize()
        assert torch.equal(moved, again)
        assert same_numbers(moved.cpu(), op.run(*tensors, **options), OTHER_SUMS)


@pytest.mark.gpu
def test_cuda_graphs_replay_a_step():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    op = OPS["apgd_l2_step_"]
    tensors = [value.cuda() for value in batch(op, (3, 3, 65, 33), torch.float32)]
    options, kept = amounts(op, 0.5), tensors[0].clone()
    expected = op.run(kept.clone(), *tensors[1:], **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op.run(tensors[0], *tensors[1:], **options)
    for _ in range(3):
        tensors[0].copy_(kept)
        graph.replay()
        assert torch.equal(tensors[0], expected)
