"""What every op that updates a batch promises: layouts, neighbours in the batch, graphs.

The starts and `select_best_` are here where torch has to see their operators.
"""

import math
import threading
import warnings

import pytest
import torch
from cases import DTYPES, STARTS, UPDATES, amounts, batch, near
from references import reference
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from roli_fast import ops
from roli_fast.errors import ArgumentError
from roli_fast.ops.random_start import random_start_op
from roli_fast.ops.select_best import select_best_op

SHAPE = (2, 3, 4, 4)


def sliced(value: Tensor) -> Tensor:
    wide = torch.zeros(*value.shape[:-1], 2 * value.shape[-1] + 1, dtype=value.dtype)
    return wide[..., 1::2].copy_(value)


def offset(value: Tensor) -> Tensor:
    """Contiguous, at an odd address for vector instructions."""
    return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)


class Subclass(Tensor):
    """A tensor type that torch does not know."""


def negated(value: Tensor) -> Tensor:
    """The same numbers in a view whose memory holds their negatives."""
    wide = value.double() if value.dtype == torch.float64 else value.float()
    view = torch.complex(torch.zeros_like(wide), -wide).conj().imag
    return view if view.dtype == value.dtype else value.clone()


LAYOUTS = {
    "contiguous": Tensor.clone,
    "channels_last": lambda v: v.clone(memory_format=torch.channels_last),
    "transposed": lambda v: v.mT.clone(memory_format=torch.contiguous_format).mT,
    "sliced": sliced,
    "offset": offset,
    "negated": negated,
    "subclass": lambda v: v.clone().as_subclass(Subclass),
}


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [value.clone() for value in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 1, 5, 9), (4, 2, 1, 1)], ids=str)
def test_mixed_layouts_give_the_same_values(op, dtype, shape):
    plain = batch(op, shape, dtype)
    for samples in (None, shape[0]):
        options = amounts(op, 0.6, samples)
        if samples:
            first = op.amounts[0]
            options[first] = options[first].repeat_interleave(2)[::2]  # an amount with strides
        expected = op.reference(*plain, **options)
        for own in LAYOUTS.values():
            for other in LAYOUTS.values():
                tensors = [own(plain[0]), *map(other, plain[1:-1]), own(plain[-1])]
                strides, version = tensors[0].stride(), tensors[0]._version
                moved = op.run(*tensors, **options)
                assert moved is tensors[0] and moved.stride() == strides
                assert moved._version == version + 1
                assert near(moved, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_does_not_depend_on_its_batch(backend, op, dtype):
    tensors, options = batch(op, (5, 3, 33, 15), dtype), amounts(op, 0.7, 5)
    whole = op.run(*copies(tensors), **options)
    order = torch.tensor([4, 2, 0, 1, 3])
    turned = {name: value[order] for name, value in options.items()}
    assert torch.equal(op.run(*[value[order] for value in tensors], **turned), whole[order])
    for i in (0, 2, 4):
        alone = [value[i : i + 1].clone() for value in tensors]
        numbers = {name: value[i].item() for name, value in options.items()}
        assert torch.equal(op.run(*alone, **numbers), whole[i : i + 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_radius_of_zero_a_box_that_wins_and_zeros_without_a_sign(backend, op, dtype):
    tensors = batch(op, (3, 4, 5), dtype)
    if "eps" in op.amounts:
        options = amounts(op, 0.0) | ({"step_size": 0.3} if "step_size" in op.amounts else {})
        assert torch.equal(op.run(*tensors, **options), tensors[-1])
    x = torch.tensor([[-3.0, 3.0, 0.5]], dtype=dtype)
    tensors = [torch.ones_like(x) if name == "grad" else x.clone() for name in op.tensors]
    assert op.run(*tensors, **amounts(op, 0.25), bounds=(-1, 2))[0, :2].tolist() == [-1.0, 2.0]
    zeros = [torch.full((1, 6), -0.0, dtype=dtype) for _ in op.tensors]
    moved = op.run(*zeros, **amounts(op, 0.5), bounds=(-1.0, 1.0))
    assert moved.tolist() == [[0.0] * 6] and not torch.signbit(moved).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_finite_entries_of_a_gradient_count_as_zero(backend, op, dtype):
    tensors, results = dict(zip(op.tensors, batch(op, (3, 50), dtype), strict=True)), []
    for entry in (0.0, math.nan, math.inf, -math.inf) if "grad" in tensors else ():
        tensors["grad"][:, ::7] = entry
        results.append(op.run(*copies([*tensors.values()]), **amounts(op, 0.4)))
        assert torch.equal(results[0], results[-1]) and results[0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_smallest_gradient_has_a_sign(backend, dtype):
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # smallest subnormal
    grad = torch.tensor([[tiny, -2 * tiny, -0.0]], dtype=torch.float64).to(dtype)
    x = torch.full_like(grad, 0.5)
    for step, more in ((ops.linf_step_, {}), (ops.l1_step_, {"density": 1.0})):
        moved = step(x.clone(), grad, x, eps=1.0, step_size=0.25 if more else 0.125, **more)
        assert moved.tolist() == [[0.625, 0.375, 0.5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_unknown_takes_its_pixel_or_its_sample_and_no_other(backend, op, dtype):
    """A sum over the sample knows no more of any pixel; linf and l1 do."""
    whole = "l2" in op.name or "fab" in op.name
    clean = op.run(*batch(op, (4, 20), dtype), **amounts(op, 0.3, 4))
    for place, target in enumerate(op.tensors):
        more = (math.inf, -math.inf) if whole and target in ("x", "x_adv") else ()
        for value in (math.nan, *more) if target != "grad" else ():
            tensors = batch(op, (4, 20), dtype)
            tensors[place][2, 5] = value
            moved = op.run(*tensors, **amounts(op, 0.3, 4))
            assert moved[2, 5].isnan() and moved[2].isnan().sum() == (20 if whole else 1)
            assert torch.equal(moved[[0, 1, 3]], clean[[0, 1, 3]])
    for name in {"eps", "value", "alpha_max"} & set(op.amounts):
        options = amounts(op, 0.3, 4)
        options[name][3] = math.nan
        moved = op.run(*batch(op, (4, 20), dtype), **options)
        assert moved[3].isnan().all() and torch.equal(moved[:3], clean[:3])


def test_autocast_and_a_functional_gradient_change_nothing(op):
    plain, options = batch(op, SHAPE, torch.float32), amounts(op, 0.3)
    expected = op.reference(*plain, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert near(op.run(*copies(plain), **options), expected)

    def loss(weight: Tensor) -> Tensor:
        moved = (plain[0] + 0 * weight.detach()).clone()
        with torch.no_grad():
            op.run(moved, *plain[1:], **options)
        return (moved * weight).sum()

    assert near(torch.func.grad(loss)(torch.ones_like(plain[0])), expected)


@pytest.fixture
def fresh_graphs():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def test_one_graph_serves_every_amount(op, fresh_graphs):
    """Captured whole, also where a temporary is updated."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice(tensors, options):
        copy = tensors[0] * 1.5
        moved = op.run(*tensors, **options)
        op.run(copy, *tensors[1:], **options)
        return moved + 1, copy

    each = [amounts(op, 0.1 + i / 20) for i in range(10)]
    for i, options in enumerate([*each, amounts(op, 0.3, 2)]):
        if i < 10 and "density" in options:
            options["density"] = 0.05 * (i + 1)
        tensors = batch(op, SHAPE, torch.float32)
        expected = op.reference(*tensors, **options)
        expected_copy = op.reference(tensors[0] * 1.5, *tensors[1:], **options)
        moved, copy = twice(tensors, options)
        assert near(tensors[0], expected) and torch.equal(moved, tensors[0] + 1)
        assert near(copy, expected_copy)
        assert i == 10 or torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    with pytest.raises(Exception, match="(?s)requires_grad|Observed exception"):
        twice([tensors[0], tensors[1].clone().requires_grad_(), *tensors[2:]], each[0])


def operator_arguments(op, samples: int = 2) -> tuple:
    """Amounts as (1,), but for the last, which is (B,)."""
    tensors = dict(zip(op.tensors, batch(op, (samples, 3, 4, 5), torch.float32), strict=True))
    numbers = [torch.full((1,), value) for value in amounts(op, 0.3).values()]
    numbers[-1] = numbers[-1].expand(samples).clone()
    return (*(tensors[key] for key in op.public), *numbers, 0.0, 1.0)


def test_the_operator_is_honest_and_checks_shapes_itself(op):
    operator, arguments = getattr(torch.ops.roli_fast, op.name), operator_arguments(op)
    torch.library.opcheck(operator, arguments)
    places = range(len(op.tensors), len(op.tensors) + len(op.amounts))
    for place, wrong in ((1, arguments[1][:1]), *((at, torch.ones(3)) for at in places)):
        bad = (*arguments[:place], wrong, *arguments[place + 1 :])
        with pytest.raises(ArgumentError):
            operator(*bad)
        with FakeTensorMode() as mode, pytest.raises(ArgumentError):
            operator(*(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in bad))


class Calls(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_whoever_traces_or_watches_sees_the_op(op):
    """make_fx, torch.jit.trace, functionalize and a dispatch mode, on images of their own."""

    def step(*tensors: Tensor) -> Tensor:
        return op.run(tensors[0].clone(), *tensors[1:], **amounts(op, 0.3))

    tensors = batch(op, SHAPE, torch.float32)
    others = [value.flip(0) for value in tensors]
    graph = make_fx(step, tracing_mode="symbolic")(*tensors)
    assert any(op.name in str(node.target) for node in graph.graph.nodes)
    assert torch.equal(graph(*others), step(*others))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and warns of shape checks
        trace = torch.jit.trace(step, tuple(tensors), check_trace=False)
    assert torch.equal(trace(*others), step(*others))
    assert torch.allclose(torch.func.functionalize(step)(*tensors), step(*tensors), atol=1e-6)
    with Calls() as calls:
        moved = step(*tensors)
    assert f"roli_fast.{op.name}.default" in calls.names and torch.equal(moved, step(*tensors))
    with Calls(), pytest.raises(ArgumentError, match="`bounds`"):  # in our words there, too
        op.run(tensors[0].clone(), *tensors[1:], **amounts(op, 0.3), bounds=(0, 10**400))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_a_derivative_by_forward_mode_is_that_of_the_formula():
    """A kernel would leave the old tangent in place."""
    x, grad = torch.rand(SHAPE), torch.randn(SHAPE)

    def step(x_adv: Tensor) -> Tensor:
        return ops.l2_step_(x_adv.clone(), grad, x, eps=0.2, step_size=0.1)

    moved, tangent = torch.func.jvp(step, (x + 0.1,), (torch.ones(SHAPE),))
    assert near(moved, step(x + 0.1)) and (tangent != 1).any()


def selection() -> tuple[Tensor, ...]:
    source = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=source) for shape in (SHAPE, SHAPE, (2,)) * 2)


def test_starts_and_selection_in_a_graph(fresh_graphs):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def all_of_them(x, eps, ids, best, new):
        starts = [getattr(ops, name)(x, eps=eps, sample_ids=ids) for name in STARTS]
        improved = ops.select_best_(*best, *new)
        return starts, best[0] + 1, improved

    x, values = torch.rand(SHAPE), selection()
    *expected, mask = reference.select_best(*values)
    with torch.random.fork_rng():
        for eps, ids in ((0.5, None), (0.25, None), (torch.rand(2), torch.tensor([7, 3]))):
            best = [value.clone() for value in values[:3]]
            torch.manual_seed(1)
            wanted = [getattr(ops, name)(x, eps=eps, sample_ids=ids) for name in STARTS]
            torch.manual_seed(1)
            starts, moved, improved = all_of_them(x, eps, ids, best, values[3:])
            assert all(map(torch.equal, starts, wanted)) and torch.equal(improved, mask)
            assert torch.equal(moved, expected[0] + 1) and all(map(torch.equal, best, expected))


def test_the_other_operators_are_honest():
    torch.library.opcheck(select_best_op, selection())
    x, eps, key = torch.rand(SHAPE), torch.full((2,), 0.5), torch.tensor([77])
    for norm, ids in (("linf", None), ("l2", torch.arange(2)), ("l1", None)):
        torch.library.opcheck(random_start_op, (norm, x, key, ids, eps, 0.0, 1.0))
    for bad in (torch.tensor([1], dtype=torch.int32), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises((ValueError, TypeError), match="^`key`"):
            random_start_op("l2", x, bad, None, eps, 0.0, 1.0)


def test_use_backend_holds_in_its_thread_and_ends_in_any_order():
    def chosen() -> str:
        return ops.backend("linf_step_", "cpu", torch.float32).name

    usual, steps, seen = chosen(), [threading.Event() for _ in range(2)], []

    def other() -> None:
        with ops.use_backend("native"):
            steps[0].set()
            steps[1].wait(10)
            seen.append(chosen())
        seen.append(chosen())

    thread = threading.Thread(target=other)
    with ops.use_backend("reference"):
        thread.start()
        assert steps[0].wait(10)
        assert chosen() == "reference"
    steps[1].set()
    thread.join()
    assert [*seen, chosen()] == [usual] * 3


def threads(run) -> list:
    """Results of one, two and three threads."""
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    return results


@pytest.mark.parametrize("name", [*UPDATES, *STARTS, "select_best_"])
def test_every_number_of_threads_gives_the_same_bits(name):
    for dtype in DTYPES[:3]:
        for shape in ((5, 3, 97, 101), (1, 200_001)):

            def run(shape=shape, dtype=dtype) -> Tensor:
                seeded = torch.Generator().manual_seed(0)
                if name in UPDATES:
                    op = UPDATES[name]
                    return op.run(*batch(op, shape, dtype), **amounts(op, 0.9, shape[0]))
                x = torch.rand(shape, generator=seeded).to(dtype)
                if name in STARTS:
                    return getattr(ops, name)(x, eps=2.0, generator=seeded)
                best, loss = x.flip(0), torch.arange(shape[0]) % 2.0
                ops.select_best_(best, x + 1, torch.zeros(shape[0]), x, x + 0, loss)
                return best

            first, *others = threads(run)
            assert all(torch.equal(first, other) for other in others)
