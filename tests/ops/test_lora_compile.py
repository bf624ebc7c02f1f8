"""lora_linear under torch.compile and torch.func, and the mask as an operator."""

import pytest
import torch
from lora_cases import ROWS, layer
from references import reference

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.ops.lora import lora_dropout_op

SEED = torch.tensor([5])
NAMES = ("x", "weight", "bias", "a", "b")


@pytest.fixture(params=["eager", "aot_eager"])
def compiled(request):
    """The layer in a graph, captured whole."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=request.param)
    def run(tensors, seed, dropout, rows):
        y = ops.lora_linear(*tensors, scale=0.7, dropout=dropout, seed=seed, rows=rows)
        return y.square()

    yield run
    torch._dynamo.reset()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("rows", [None, ROWS["q and v"]])
def test_the_same_values_and_gradients(compiled, dropout, rows):
    results = []
    for inside in (True, False):
        tensors = [layer(rows)[name].requires_grad_() for name in NAMES]
        if inside:
            y = compiled(tensors, SEED, dropout, rows)
        else:
            y = ops.lora_linear(*tensors, scale=0.7, dropout=dropout, seed=SEED, rows=rows)
            y = y.square()
        y.sum().backward()
        results.append([y.detach(), *(tensor.grad for tensor in tensors)])
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype):
    x = layer(dtype=dtype)["x"].requires_grad_()
    torch.library.opcheck(lora_dropout_op, (x, SEED, 0.3))


def test_the_operator_is_the_reference():
    x = layer()["x"]
    assert torch.equal(lora_dropout_op(x, SEED, 0.3), reference.lora_dropout(x, SEED, 0.3))
    for bad in ((x, torch.zeros(1), 0.3), (x, torch.zeros(2, dtype=torch.int64), 0.3)):
        with pytest.raises((ArgumentError, ArgumentTypeError), match="`seed`"):
            lora_dropout_op(*bad)
    with pytest.raises(ArgumentError, match="`dropout`"):
        lora_dropout_op(x, SEED, 1.0)


def test_torch_func():
    """Gradients a sample by vmap, of tensors without memory of their own."""
    case = layer(batch=(5,))

    def loss(a, x):
        rest = (case["weight"], case["bias"], a, case["b"])
        return ops.lora_linear(x, *rest, scale=0.7).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(case["a"], case["x"])
    whole = torch.func.grad(loss)(case["a"], case["x"])
    assert each.shape == (5, 3, 20)
    assert torch.allclose(each.sum(0), whole, rtol=1e-3, atol=1e-3)
