"""torch.compile and torch.library for the random starts and select_best_."""

import pytest
import torch
from references import reference

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.ops.random_start import random_start_op
from roli_fast.ops.select_best import select_best_op

SHAPE = (2, 3, 4, 5)
NORMS = ("linf", "l2", "l1")


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def images(dtype=torch.float32, samples: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((samples, *SHAPE[1:]), generator=generator).to(dtype)


def selection() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(s, generator=generator) for s in (SHAPE, SHAPE, (2,)) * 2)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_in_a_graph(norm):
    start, x = getattr(ops, f"{norm}_random_start"), images()
    compiled = torch.compile(
        lambda x, eps, ids: start(x, eps=eps, sample_ids=ids), fullgraph=True, backend="aot_eager"
    )
    with torch.random.fork_rng():
        for eps, ids in ((0.5, None), (0.25, None), (torch.rand(2), torch.tensor([7, 3]))):
            torch.manual_seed(1)
            expected = start(x, eps=eps, sample_ids=ids)
            torch.manual_seed(1)
            assert torch.equal(compiled(x, eps, ids), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [1, 2])
def test_opcheck_of_random_starts(dtype, samples):
    x, eps, key = images(dtype, samples), torch.full((samples,), 0.5), torch.tensor([77])
    for norm in NORMS:
        for ids in (None, torch.arange(samples)):
            torch.library.opcheck(random_start_op, (norm, x, key, ids, eps, 0.0, 1.0))


@pytest.mark.parametrize(
    "bad",
    [
        ("l0", torch.tensor([1]), None),
        ("l2", torch.tensor([1], dtype=torch.int32), None),
        ("l2", torch.tensor([1]), torch.zeros(3, dtype=torch.int64)),
    ],
    ids=["norm", "key", "sample_ids"],
)
def test_the_random_start_operator_checks_its_arguments_itself(bad):
    norm, key, ids = bad
    tensors = [images(), key, ids, torch.full((1,), 0.1)]
    with pytest.raises((ArgumentError, ArgumentTypeError)):
        random_start_op(norm, *tensors, 0.0, 1.0)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [v if v is None else mode.from_tensor(v) for v in tensors]
        with pytest.raises((ArgumentError, ArgumentTypeError)):
            random_start_op(norm, *fake, 0.0, 1.0)


def test_select_best_is_captured_whole():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def keep(best, new):
        improved = ops.select_best_(*best, *new)
        return best[0] + 1, improved

    values = selection()
    *expected, mask = reference.select_best(*values)
    moved, improved = keep(values[:3], values[3:])
    assert torch.equal(improved, mask) and torch.equal(moved, expected[0] + 1)
    assert all(torch.equal(*pair) for pair in zip(values[:3], expected, strict=True))


def test_opcheck_of_select_best():
    torch.library.opcheck(select_best_op, selection())
