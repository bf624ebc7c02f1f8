"""torch.compile and torch.library: whole graphs, one graph for all values, honest schemas."""

import pytest
import torch

from roli_fast import ops
from roli_fast.errors import ArgumentError
from roli_fast.ops import library, reference

SHAPE = (2, 3, 4, 5)


def triple(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(SHAPE, generator=generator).to(dtype)
    return x.clone(), torch.randn(SHAPE, generator=generator).to(dtype), x


@pytest.fixture(params=["eager", "aot_eager"])
def compiled(request):
    """A function of the op's arguments, captured whole, that also steps on a temporary."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=request.param)
    def two_steps(x_adv, grad, x, eps, step_size):
        copy = x_adv * 1.0
        moved = ops.linf_step_(x_adv, grad, x, eps=eps, step_size=step_size)
        ops.linf_step_(copy, -grad, x, eps=eps, step_size=step_size)
        return moved + 1, copy

    yield two_steps
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_one_graph_serves_every_eps(compiled, dtype):
    torch._dynamo.utils.counters.clear()
    for i in range(12):
        x_adv, grad, x = triple(dtype)
        options = {"eps": (2 + i) / 255, "step_size": 2 / 255}
        up = reference.linf_step(x_adv, grad, x, **options)
        down = reference.linf_step(x_adv, -grad, x, **options)
        moved, copy = compiled(x_adv, grad, x, **options)
        assert torch.equal(x_adv, up) and torch.equal(moved, up + 1) and torch.equal(copy, down)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_per_sample_amounts(compiled):
    x_adv, grad, x = triple()
    options = {"eps": torch.tensor([0.0, 0.3]), "step_size": torch.tensor([0.1, 0.2])}
    expected = reference.linf_step(x_adv, grad, x, **options)
    compiled(x_adv, grad, x, **options)
    assert torch.equal(x_adv, expected)


def test_wrong_calls_are_refused(compiled):
    x_adv, grad, x = triple()
    options = {"eps": 0.1, "step_size": 0.1}
    with pytest.raises(Exception, match="(?s)x_adv|Observed exception"):
        compiled(x_adv, grad[:1], x, **options)
    with pytest.raises(Exception, match="(?s)requires_grad|Observed exception"):
        compiled(x_adv, grad.clone().requires_grad_(), x, **options)
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [1, 2])
def test_opcheck(dtype, samples):
    amounts = torch.full((1,), 0.1), torch.full((samples,), 0.05)
    arguments = [value[:samples].clone() for value in triple(dtype)]
    torch.library.opcheck(library.linf_step_op, (*arguments, *amounts, 0.0, 1.0))


def test_the_operator_checks_shapes_itself():
    x_adv, grad, x = triple()
    amount = torch.full((1,), 0.1)
    for bad in ((x_adv, grad[:1], x, amount, amount), (x_adv, grad, x, torch.ones(3), amount)):
        with pytest.raises(ArgumentError):
            library.linf_step_op(*bad, 0.0, 1.0)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [mode.from_tensor(value) for value in bad]
            with pytest.raises(ArgumentError):
                library.linf_step_op(*fake, 0.0, 1.0)
