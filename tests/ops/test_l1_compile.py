"""torch.compile and torch.library: whole graphs, one graph for all values, honest schemas."""

import pytest
import torch

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.ops import library, reference

SHAPE = (2, 3, 4, 5)
NORMS = ("linf", "l2", "l1")


def triple(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(SHAPE, generator=generator).to(dtype)
    return x.clone(), torch.randn(SHAPE, generator=generator).to(dtype), x


@pytest.fixture(params=["eager", "aot_eager"])
def compiled(request):
    """A function of the ops' arguments, captured whole."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=request.param)
    def step_and_project(x_adv, grad, x, eps, step_size, density):
        copy = x_adv * 1.5
        moved = ops.l1_step_(x_adv, grad, x, eps=eps, step_size=step_size, density=density)
        ops.l1_project_(copy, x, eps=eps)
        return moved + 1, copy

    yield step_and_project
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_one_graph_serves_every_number(compiled, dtype):
    torch._dynamo.utils.counters.clear()
    for i in range(12):
        x_adv, grad, x = triple(dtype)
        numbers = {"eps": 2.0 + i, "step_size": 3.0 - i / 8, "density": 0.05 * (i + 1)}
        stepped = reference.l1_step(x_adv, grad, x, **numbers)
        projected = reference.l1_project(x_adv * 1.5, x, eps=numbers["eps"])
        moved, copy = compiled(x_adv, grad, x, **numbers)
        assert torch.equal(x_adv, stepped) and torch.equal(moved, stepped + 1)
        assert torch.equal(copy, projected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_per_sample_amounts(compiled):
    x_adv, grad, x = triple()
    amounts = {name: torch.tensor([0.2, 0.9]) for name in ("eps", "step_size", "density")}
    expected = reference.l1_step(x_adv, grad, x, **amounts)
    compiled(x_adv, grad, x, **amounts)
    assert torch.equal(x_adv, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_in_a_graph(norm):
    torch._dynamo.reset()
    start, x = getattr(ops, f"{norm}_random_start"), triple()[2]
    compiled = torch.compile(
        lambda x, eps, ids: start(x, eps=eps, sample_ids=ids), fullgraph=True, backend="aot_eager"
    )
    with torch.random.fork_rng():
        for eps, ids in ((0.5, None), (0.25, None), (torch.rand(2), torch.tensor([7, 3]))):
            torch.manual_seed(1)
            expected = start(x, eps=eps, sample_ids=ids)
            torch.manual_seed(1)
            assert torch.equal(compiled(x, eps, ids), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [1, 2])
def test_opcheck(dtype, samples):
    x_adv, grad, x = (value[:samples].clone() for value in triple(dtype))
    one, each = torch.full((1,), 0.4), torch.full((samples,), 0.5)
    torch.library.opcheck(library.l1_project_op, (x_adv, x, each, 0.0, 1.0))
    torch.library.opcheck(library.l1_step_op, (x_adv, grad, x, one, each, one, 0.0, 1.0))
    key = torch.tensor([77])
    for norm in NORMS:
        for ids in (None, torch.arange(samples)):
            arguments = (norm, x, key, ids, each, 0.0, 1.0)
            torch.library.opcheck(library.random_start_op, arguments)


def test_the_operators_check_their_arguments_themselves():
    x_adv, grad, x = triple()
    one, key = torch.full((1,), 0.1), torch.tensor([1])
    bad = [
        (library.l1_project_op, (x_adv, x[:1], one)),
        (library.l1_project_op, (x_adv, x, torch.ones(3))),
        (library.l1_step_op, (x_adv, grad[:1], x, one, one, one)),
        (library.l1_step_op, (x_adv, grad, x, one, one, torch.ones(3))),
        (library.random_start_op, ("l0", x, key, None, one)),
        (library.random_start_op, ("l2", x, key.int(), None, one)),
        (library.random_start_op, ("l2", x, key, torch.zeros(3, dtype=torch.int64), one)),
    ]
    for op, arguments in bad:
        with pytest.raises((ArgumentError, ArgumentTypeError)):
            op(*arguments, 0.0, 1.0)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [
                mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
                for value in arguments
            ]
            with pytest.raises((ArgumentError, ArgumentTypeError)):
                op(*fake, 0.0, 1.0)
