"""The ops in torch.compile and torch.library: whole graphs, one for all values, honest schemas."""

import pytest
import torch
from cases import STARTS, amounts, batch, near
from references import reference

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.ops.random_start import random_start_op
from roli_fast.ops.select_best import select_best_op

SHAPE = (2, 3, 4, 5)


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


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
    assert near(tensors[0], expected) and torch.equal(moved, tensors[0] + 1)
    assert near(copy, expected_copy)


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


def operator(op):
    """The op as torch.library has it."""
    return getattr(torch.ops.roli_fast, op.name)


def operator_arguments(op, dtype=torch.float32, samples: int = 2) -> tuple:
    """Amounts as (1,), but for the last, which is (B,)."""
    tensors = dict(zip(op.tensors, batch(op, (samples, 3, 4, 5), dtype), strict=True))
    numbers = [torch.full((1,), value) for value in amounts(op, 0.3).values()]
    numbers[-1] = numbers[-1].expand(samples).clone()
    return (*(tensors[key] for key in op.public), *numbers, 0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [1, 2])
def test_opcheck(op, dtype, samples):
    torch.library.opcheck(operator(op), operator_arguments(op, dtype, samples))


def test_the_operators_check_shapes_themselves(op):
    arguments = operator_arguments(op)
    places = range(len(op.tensors), len(op.tensors) + len(op.amounts))
    for place, wrong in ((1, arguments[1][:1]), *((at, torch.ones(3)) for at in places)):
        bad = (*arguments[:place], wrong, *arguments[place + 1 :])
        with pytest.raises(ArgumentError):
            operator(op)(*bad)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in bad]
            with pytest.raises(ArgumentError):
                operator(op)(*fake)


def images(dtype=torch.float32, samples: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((samples, *SHAPE[1:]), generator=generator).to(dtype)


def selection() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(s, generator=generator) for s in (SHAPE, SHAPE, (2,)) * 2)


@pytest.mark.parametrize("name", STARTS)
def test_random_starts_in_a_graph(name):
    start, x = getattr(ops, name), images()
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
    for norm in ("linf", "l2", "l1"):
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
