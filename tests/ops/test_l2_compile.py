"""torch.compile and torch.library for the L2 and APGD ops and select_best_."""

import pytest
import torch
from l2_cases import OPS, amounts, batch, same_numbers

from roli_fast import ops
from roli_fast.errors import ArgumentError
from roli_fast.ops import library, reference

SHAPE = (2, 3, 4, 5)
ORDER = ("x_adv", "x_prev", "grad", "x")


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_graph_serves_every_amount(name, dtype):
    op = OPS[name]

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice(tensors, options):
        return op.run(*tensors, **options) + 1

    for i in range(12):
        tensors, options = batch(op, SHAPE, dtype), amounts(op, 0.1 + i / 20)
        expected = op.reference(*tensors, **options)
        moved = twice(tensors, options)
        assert same_numbers(tensors[0], expected) and torch.equal(moved, tensors[0] + 1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    tensors, options = batch(op, SHAPE, dtype), amounts(op, 0.3, 2)
    expected = op.reference(*tensors, **options)
    twice(tensors, options)
    assert same_numbers(tensors[0], expected)


def test_select_best_is_captured_whole():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def keep(best, new):
        improved = ops.select_best_(*best, *new)
        return best[0] + 1, improved

    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(s, generator=generator) for s in (SHAPE, SHAPE, (2,)) * 2]
    *expected, mask = reference.select_best(*values)
    moved, improved = keep(values[:3], values[3:])
    assert torch.equal(improved, mask) and torch.equal(moved, expected[0] + 1)
    assert all(torch.equal(*pair) for pair in zip(values[:3], expected, strict=True))


def operator_arguments(name: str, dtype=torch.float32, samples: int = 2) -> tuple:
    op = OPS[name]
    tensors = dict(zip(op.tensors, batch(op, (samples, 3, 4), dtype), strict=True))
    numbers = [torch.full((1,), value) for value in amounts(op, 0.3).values()]
    numbers[-1] = numbers[-1].expand(samples).clone()
    return (*(tensors[key] for key in ORDER if key in tensors), *numbers, 0.0, 1.0)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(name, dtype):
    torch.library.opcheck(getattr(library, name + "op"), operator_arguments(name, dtype))


def test_opcheck_of_select_best():
    generator = torch.Generator().manual_seed(0)
    values = tuple(torch.randn(s, generator=generator) for s in (SHAPE, SHAPE, (2,)) * 2)
    torch.library.opcheck(library.select_best_op, values)


@pytest.mark.parametrize("name", OPS)
def test_the_operators_check_shapes_themselves(name):
    arguments = operator_arguments(name)
    bad = (arguments[0], arguments[1][:1], *arguments[2:])
    with pytest.raises(ArgumentError):
        getattr(library, name + "op")(*bad)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in bad]
        with pytest.raises(ArgumentError):
            getattr(library, name + "op")(*fake)
