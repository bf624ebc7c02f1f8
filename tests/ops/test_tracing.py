"""Who traces, transforms or changes torch's defaults gets the op, or an error with a name."""

import threading
import warnings

import pytest
import torch
from cases import DTYPES, STARTS, amounts, batch, near
from references import reference
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.ops import native

SHAPE = (2, 3, 4, 4)


class Calls(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def step_of(op):
    def step(*tensors: Tensor) -> Tensor:
        return op.run(tensors[0].clone(), *tensors[1:], **amounts(op, 0.3))

    return step


def others(op) -> list[Tensor]:
    """Other images than those of `batch`."""
    return [value.flip(0) for value in batch(op, SHAPE, torch.float32)]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_op(op, mode):
    step = step_of(op)
    graph = make_fx(step, tracing_mode=mode)(*batch(op, SHAPE, torch.float32))
    assert any(op.name in str(node.target) for node in graph.graph.nodes)
    assert torch.equal(graph(*others(op)), step(*others(op)))


def test_a_trace_of_torchscript_records_the_op(op):
    step = step_of(op)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and warns of shape checks
        trace = torch.jit.trace(step, tuple(batch(op, SHAPE, torch.float32)), check_trace=False)
    assert torch.equal(trace(*others(op)), step(*others(op)))


def test_a_dispatch_mode_sees_the_op(op):
    step, tensors = step_of(op), batch(op, SHAPE, torch.float32)
    with Calls() as calls:
        moved = step(*tensors)
    assert f"roli_fast.{op.name}.default" in calls.names
    assert torch.equal(moved, step(*tensors))


def test_a_dispatch_mode_sees_starts_selection_and_dropout():
    x, seed = torch.rand(SHAPE), torch.tensor([3])
    with Calls() as calls:
        for name in STARTS:
            start = getattr(ops, name)
            moved = start(x, eps=0.3, generator=torch.Generator().manual_seed(0))
            expected = start(x, eps=0.3, generator=torch.Generator().manual_seed(0))
            assert torch.equal(moved, expected)
        best = (x.clone(), x.clone(), torch.zeros(2))
        assert ops.select_best_(*best, x, x, torch.ones(2)).all()
        ops.lora_linear(x, x[0, 0], None, x[0, 1], x[0, 2], scale=1.0, dropout=0.5, seed=seed)
    seen = [name for name in calls.names if name.startswith("roli_fast")]
    assert [
        seen.count(f"roli_fast.{name}.default") for name in ("random_start", "select_best_")
    ] == [6, 1]
    assert seen.count("roli_fast.lora_dropout.default") == 1


@pytest.mark.parametrize("trace", ["make_fx", "jit"])
def test_a_traced_lora_layer_keeps_its_dropout(trace):
    """The mask of the kernel was memory that nothing had written to."""
    weight, a, b, seed = torch.rand(5, 8), torch.rand(2, 8), torch.rand(5, 2), torch.tensor([3])

    def layer(x: Tensor) -> Tensor:
        return ops.lora_linear(x, weight, None, a, b, scale=1.0, dropout=0.5, seed=seed)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.rand(3, 8),)
        traced = make_fx(layer)(*example) if trace == "make_fx" else torch.jit.trace(layer, example)
    x = torch.rand(3, 8)
    torch.testing.assert_close(traced(x), layer(x))


def test_a_tensor_type_with_rules_of_its_own_gets_the_operator():
    seen = []

    class Wrapped(Tensor):
        held: Tensor

        @staticmethod
        def __new__(cls, inner):
            made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
            made.held = inner
            return made

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*(getattr(value, "held", value) for value in args), **(kwargs or {}))

    x, grad = torch.rand(SHAPE), torch.randn(SHAPE)
    expected = ops.linf_step_(x.clone(), grad, x, eps=0.1, step_size=0.1)
    moved = x.clone()
    ops.linf_step_(moved, Wrapped(grad), x, eps=0.1, step_size=0.1)
    assert torch.equal(moved, expected) and "roli_fast.linf_step_.default" in seen


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in make_dual
def test_vmap_and_tangents_are_refused_by_name(op):
    tensors = batch(op, SHAPE, torch.float32)
    name = op.tensors[0]
    with pytest.raises(ArgumentTypeError, match=f"^`{name}`: .* got one of torch.vmap"):
        torch.vmap(step_of(op))(*[value[None] for value in tensors])
    with pytest.raises(ArgumentError, match=f"^`{name}`: .* got a dual one"):
        torch.func.jvp(step_of(op), tuple(tensors), tuple(tensors))
    with forward_ad.dual_level(), pytest.raises(ArgumentError, match=r"^`x`: .* got a dual one"):
        op.run(*tensors[:-1], forward_ad.make_dual(tensors[-1], tensors[-1]), **amounts(op, 0.3))


def test_functionalize_gives_the_same(op):
    step, tensors = step_of(op), batch(op, SHAPE, torch.float32)
    assert torch.allclose(torch.func.functionalize(step)(*tensors), step(*tensors), atol=1e-6)


def test_real_tensors_in_a_fake_mode_are_refused_by_name(op):
    tensors = batch(op, SHAPE, torch.float32)
    before = tensors[0].clone()
    with FakeTensorMode(), pytest.raises(ArgumentTypeError, match=f"^`{op.tensors[0]}`: .* fake"):
        op.run(*tensors, **amounts(op, 0.3))
    assert torch.equal(tensors[0], before)
    with FakeTensorMode(), pytest.raises(ArgumentTypeError, match=r"^`x`: .* fake"):
        ops.linf_random_start(tensors[0], eps=0.1)


@pytest.mark.parametrize("backend", native.BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_default_device_and_dtype_change_nothing(op, backend, dtype):
    """5001 elements: fp16, as the default dtype, has no such number."""
    tensors = batch(op, (2, 5001), dtype)
    with ops.use_backend(backend):
        expected = step_of(op)(*tensors)
        reference.box_limits.cache_clear()
        with torch.device("meta"):
            assert torch.equal(step_of(op)(*tensors), expected)
        for default in (torch.float64, torch.float16):
            torch.set_default_dtype(default)
            try:
                assert torch.equal(step_of(op)(*tensors), expected)
            finally:
                torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", STARTS)
def test_a_start_on_another_default_device(name):
    x = torch.rand(SHAPE)
    expected = getattr(ops, name)(x, eps=0.1, generator=torch.Generator().manual_seed(0))
    reference.box_limits.cache_clear()
    with torch.device("meta"):
        generator = torch.Generator("cpu").manual_seed(0)
        assert torch.equal(getattr(ops, name)(x, eps=0.1, generator=generator), expected)


def test_use_backend_holds_in_its_thread_and_ends_in_any_order():
    def chosen() -> str:
        return ops.backend("linf_step_", "cpu", torch.float32).name

    usual, steps, seen = chosen(), [threading.Event() for _ in range(3)], []

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


def test_a_view_that_negates_is_written_in_a_dispatch_mode(op):
    tensors = batch(op, SHAPE, torch.float32)
    expected = step_of(op)(*tensors)
    tensors[0] = torch.imag(torch.complex(tensors[0], -tensors[0]).conj())
    assert tensors[0].is_neg()
    with Calls():
        found = op.run(*tensors, **amounts(op, 0.3))
    assert near(found, expected)


def test_fake_tensors_of_two_modes_are_refused_by_name(op):
    tensors = batch(op, SHAPE, torch.float32)
    fakes = [FakeTensorMode().from_tensor(value) for value in tensors]
    with pytest.raises(ArgumentTypeError, match="fake tensors of one FakeTensorMode"):
        op.run(*fakes, **amounts(op, 0.3))


def test_inference_tensors_in_a_layer_that_trains_are_refused_by_name():
    with torch.inference_mode():
        a = torch.ones(2, 4)
    x = torch.ones(3, 4, requires_grad=True)
    with pytest.raises(ArgumentError, match="^`a`: expected a normal tensor"):
        ops.lora_linear(x, torch.ones(5, 4), None, a, torch.ones(5, 2), scale=1.0)
