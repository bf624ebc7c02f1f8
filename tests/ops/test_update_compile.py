"""Ops that update a batch in torch.compile: whole graphs, one for all values, honest schemas."""

import pytest
import torch
from l2_cases import amounts, batch, same_numbers
from update_cases import ORDER, UPDATES, operator

from roli_fast.errors import ArgumentError

SHAPE = (2, 3, 4, 5)


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=UPDATES)
def op(request):
    return UPDATES[request.param]


@pytest.fixture(params=["eager", "aot_eager"])
def compiled(request, op):
    """A function of the op's arguments, captured whole, that also updates a temporary."""

    @torch.compile(fullgraph=True, backend=request.param)
    def twice(tensors, options):
        copy = tensors[0] * 1.5
        moved = op.run(*tensors, **options)
        op.run(copy, *tensors[1:], **options)
        return moved + 1, copy

    return twice


def check(op, compiled, dtype, options):
    tensors = batch(op, SHAPE, dtype)
    expected = op.reference(*tensors, **options)
    expected_copy = op.reference(tensors[0] * 1.5, *tensors[1:], **options)
    moved, copy = compiled(tensors, options)
    assert same_numbers(tensors[0], expected) and torch.equal(moved, tensors[0] + 1)
    assert same_numbers(copy, expected_copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_one_graph_serves_every_amount(op, compiled, dtype):
    for i in range(12):
        options = amounts(op, 0.1 + i / 20)
        if "density" in options:
            options["density"] = 0.05 * (i + 1)
        check(op, compiled, dtype, options)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    check(op, compiled, dtype, amounts(op, 0.3, 2))


def test_wrong_calls_are_refused(op, compiled):
    tensors, options = batch(op, SHAPE, torch.float32), amounts(op, 0.1)
    kept, second = tensors[0].clone(), tensors[1]
    with pytest.raises(Exception, match="(?s)x_adv|Observed exception"):
        compiled([tensors[0], second[:1], *tensors[2:]], options)
    with pytest.raises(Exception, match="(?s)requires_grad|Observed exception"):
        compiled([tensors[0], second.clone().requires_grad_(), *tensors[2:]], options)
    assert torch.equal(tensors[0], kept)


def operator_arguments(op, dtype=torch.float32, samples: int = 2) -> tuple:
    """Amounts as (1,), but for the last, which is (B,)."""
    tensors = dict(zip(op.tensors, batch(op, (samples, 3, 4, 5), dtype), strict=True))
    numbers = [torch.full((1,), value) for value in amounts(op, 0.3).values()]
    numbers[-1] = numbers[-1].expand(samples).clone()
    return (*(tensors[key] for key in ORDER if key in tensors), *numbers, 0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [1, 2])
def test_opcheck(op, dtype, samples):
    torch.library.opcheck(operator(op.name), operator_arguments(op, dtype, samples))


def test_the_operators_check_shapes_themselves(op):
    arguments = operator_arguments(op)
    places = range(len(op.tensors), len(op.tensors) + len(op.amounts))
    for place, wrong in ((1, arguments[1][:1]), *((at, torch.ones(3)) for at in places)):
        bad = (*arguments[:place], wrong, *arguments[place + 1 :])
        with pytest.raises(ArgumentError):
            operator(op.name)(*bad)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in bad]
            with pytest.raises(ArgumentError):
                operator(op.name)(*fake)
