"""lora_linear: its formula, its derivative, dropout, autocast, graphs; lora_merge_."""

import pytest
import torch
from lora_cases import LORA, ROWS, exact, layer, update
from references import reference
from torch.utils.checkpoint import checkpoint

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.ops.lora import lora_dropout_op

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SEED = torch.tensor([20240229])
NAMES = ("x", "weight", "bias", "a", "b")


@pytest.fixture(params=ROWS, ids=str)
def rows(request):
    return ROWS[request.param]


def run(case, **options):
    return ops.lora_linear(*(case[name] for name in NAMES), **options)


def gradients(case, names=("x", "a", "b"), **options):
    """y and the gradients of a fixed weighting of it."""
    case = {k: v.clone().requires_grad_(k in names) for k, v in case.items()}
    y = run(case, **options)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y.dtype).view_as(y))
    return y.detach(), {name: case[name].grad for name in NAMES}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_formula(backend, rows, dtype):
    case = layer(rows, dtype)
    y = run(case, scale=0.7, rows=rows)
    assert y.dtype == dtype
    assert (y.double() - exact(case, 0.7, rows)).abs().max() < LORA[dtype]


def test_by_hand(backend):
    """x = (1, 2), W = I, A = (3, 1), B = (1, -1)^T, scale 2: A x = 5, y = (1, 2) + 10 (1, -1)."""
    x, weight = torch.tensor([[1.0, 2.0]]), torch.eye(2)
    a, b = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0], [-1.0]])
    assert ops.lora_linear(x, weight, None, a, b, scale=2.0).tolist() == [[11.0, -8.0]]
    second = ops.lora_linear(x, weight, None, a, b[1:], scale=2.0, rows=((1, 2),))
    assert second.tolist() == [[1.0, -8.0]]


@pytest.mark.parametrize(("rows", "dropout"), [("q and v", 0.0), ("out of order", 0.4)])
def test_gradcheck(backend, rows, dropout):
    rows = ROWS[rows]
    case = layer(rows, torch.float64, batch=(3,))
    tensors = [case[name].requires_grad_() for name in NAMES]
    options = {"scale": 0.7, "dropout": dropout, "seed": SEED, "rows": rows}
    assert torch.autograd.gradcheck(lambda *t: ops.lora_linear(*t, **options), tensors)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_gradients_against_fp64(backend, rows, dtype, dropout):
    case = layer(rows, dtype)
    options = {"scale": 0.7, "dropout": dropout, "seed": SEED, "rows": rows}
    with ops.use_backend("reference"):
        _, expected = gradients({k: v.double() for k, v in case.items()}, NAMES, **options)
    _, found = gradients(case, NAMES, **options)
    for name in NAMES:
        assert found[name].dtype == dtype and found[name].shape == case[name].shape
        size = expected[name].abs().max().clamp(min=1)
        assert (found[name].double() - expected[name]).abs().max() < LORA[dtype] * size


def test_a_frozen_weight_gets_no_gradient(backend, rows):
    _, found = gradients(layer(rows), scale=0.7, rows=rows)
    assert found["weight"] is None and found["bias"] is None
    assert all(found[name].abs().max() > 0 for name in ("x", "a", "b"))
    _, found = gradients(layer(rows), ("x",), scale=0.7, rows=rows)
    assert found["a"] is None and found["b"] is None and found["x"].abs().max() > 0


class TestDropout:
    def test_the_branch_sees_a_mask_and_the_rest_is_scaled(self, backend, rows):
        case = layer(rows, torch.float64)
        branch = reference.lora_dropout(case["x"], SEED, 0.4)
        dropped = branch == 0
        assert 0.3 < dropped.double().mean() < 0.5
        assert torch.equal(branch[~dropped], case["x"][~dropped])
        y = run(case, scale=0.7, dropout=0.4, seed=SEED, rows=rows)
        assert torch.allclose(y, exact(case, 0.7 / 0.6, rows, branch), rtol=0, atol=1e-12)

    def test_a_known_mask(self):
        """Counter 0 with key 0: Philox's words 6627e8d5 e169c58d bc57ac4c 9b00dbd8 (Random123)."""
        words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
        for dropout in (0.3, 0.5, 0.65, 0.8):
            kept = reference.lora_dropout(torch.ones(4), torch.tensor([0]), dropout) != 0
            assert kept.tolist() == [word / 2**32 >= dropout for word in words]

    def test_without_a_seed_torch_draws_one(self, backend):
        case = layer()
        torch.manual_seed(3)
        first, second = (run(case, scale=1.0, dropout=0.5) for _ in range(2))
        torch.manual_seed(3)
        assert torch.equal(run(case, scale=1.0, dropout=0.5), first)
        assert not torch.equal(first, second)
        state = torch.get_rng_state()
        run(case, scale=1.0, dropout=0.5, seed=SEED)
        run(case, scale=1.0)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_sees_the_same_mask(backend, reentrant):
    case = layer()
    options = {"scale": 0.7, "dropout": 0.5}
    results = []
    for saved in (False, True):
        torch.manual_seed(1)
        leaves = {k: v.clone().requires_grad_() for k, v in case.items()}

        def body(x, a, b, leaves=leaves):
            return run(leaves | {"x": x, "a": a, "b": b}, **options).square()

        args = (leaves["x"], leaves["a"], leaves["b"])
        y = checkpoint(body, *args, use_reentrant=reentrant) if saved else body(*args)
        y.sum().backward()
        results.append([y.detach(), *(leaves[name].grad for name in NAMES)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_autocast(backend, rows, dropout):
    case = layer(rows)
    options = {"scale": 0.7, "dropout": dropout, "seed": SEED, "rows": rows}
    expected, slopes = gradients({k: v.double() for k, v in case.items()}, NAMES, **options)
    case = {k: v.clone().requires_grad_() for k, v in case.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = run(case, **options)
        again = run(case | {"x": case["x"].detach().bfloat16()}, **options)
    assert y.dtype == torch.bfloat16 and torch.equal(y, again)
    assert (y.double() - expected).abs().max() < LORA[torch.bfloat16]
    y.backward(torch.linspace(-1, 1, y.numel()).to(y.dtype).view_as(y))
    for name in NAMES:
        assert case[name].grad.dtype == torch.float32
        size = slopes[name].abs().max().clamp(min=1)
        assert (case[name].grad - slopes[name]).abs().max() < LORA[torch.bfloat16] * size


def test_factors_in_fp32_beside_a_half_model(backend):
    case = layer(dtype=torch.bfloat16)
    wide = case | {"a": case["a"].float(), "b": case["b"].float()}
    y, found = gradients(wide, scale=0.7)
    assert torch.equal(y, run(case, scale=0.7))
    assert found["a"].dtype == torch.float32 and found["x"].dtype == torch.bfloat16


def test_empty_batches_and_any_number_of_dimensions(backend):
    case = layer()
    for shape in ((0,), (2, 0), ()):
        y, found = gradients(layer(batch=shape), scale=0.7, dropout=0.5, seed=SEED)
        assert y.shape == (*shape, 24) and found["a"].shape == (3, 20)
    flat = layer(batch=(21,))
    assert torch.allclose(run(flat, scale=0.7).view(3, 7, 24), run(case, scale=0.7), atol=1e-5)


def test_the_output_may_be_changed_in_place(backend, rows):
    """timm's Swin V2 and Eva add their separate biases so; the gradients are those of a sum."""
    case, grads = layer(rows), []
    for in_place in (False, True):
        b = case["b"].clone().requires_grad_()
        y = run({**case, "b": b}, scale=0.7, rows=rows)
        y = y.add_(1) if in_place else y + 1
        y.square().sum().backward()
        grads.append(b.grad)
    assert torch.equal(*grads)


PAIRS = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]


def merged_of(cases, rows, dtype=None, scales=None, **options):
    weights = [case["weight"] for case in cases]
    targets = [torch.full_like(w, torch.nan, dtype=dtype or w.dtype) for w in weights]
    a, b = ([case[name] for case in cases] for name in ("a", "b"))
    scales = scales or [0.7] * len(cases)
    assert ops.lora_merge_(targets, weights, a, b, scales=scales, rows=rows, **options) is None
    return targets


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("source", "target"), PAIRS, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["factors alike", "factors in fp32"])
def test_one_rounding(backend, rows, source, target, wide):
    """Half a spacing of the result, and what fp32 loses in sums of three products."""
    case = layer(rows, source)
    before = case["weight"].clone()
    if wide:
        case |= {name: case[name].float() for name in ("a", "b")}
    (found,) = merged_of([case], [rows], target)
    exact = before.double() + 0.7 * update(case["a"], case["b"], rows, before.shape)
    spacing = torch.finfo(target).eps
    compute = torch.finfo(torch.float64 if source == torch.float64 else torch.float32).eps
    assert ((found.double() - exact).abs() <= spacing / 2 * exact.abs() + 20 * compute).all()
    assert torch.equal(case["weight"], before)
    outside = torch.ones(len(before), dtype=torch.bool)
    for start, stop in rows or ((0, len(before)),):
        outside[start:stop] = False
    assert torch.equal(found[outside], before[outside].to(target))


def test_a_merge_by_hand(backend):
    """I + 2 (1, -1)^T (3, 1) = ((7, 2), (-6, -1))."""
    case = {"weight": torch.eye(2), "a": torch.tensor([[3.0, 1.0]])}
    (found,) = merged_of([case | {"b": torch.tensor([[1.0], [-1.0]])}], None, scales=[2.0])
    assert found.tolist() == [[7.0, 2.0], [-6.0, -1.0]]


def test_many_layers_of_many_kinds(backend):
    sizes = [(24, 20, 3), (8, 64, 1), (24, 16, 70), (300, 33, 16)]
    rows = [None, ((2, 5),), None, ((0, 100), (200, 300))]
    cases = [layer(r, size=s) for r, s in zip(rows, sizes, strict=True)]
    scales = [1.0, -0.5, 0.0, 2]
    found = merged_of(cases, rows, scales=scales)
    for case, target, scale, ranges in zip(cases, found, scales, rows, strict=True):
        added = scale * update(case["a"], case["b"], ranges, target.shape)
        assert torch.allclose(target.double(), case["weight"] + added, rtol=0, atol=2e-5)
    assert merged_of([], []) == [] and merged_of([], None) == []


@pytest.fixture
def compiled():
    """The layer in a graph, captured whole."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
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


def test_the_dropout_operator_is_honest_and_the_reference():
    x = layer()["x"]
    torch.library.opcheck(lora_dropout_op, (x.clone().requires_grad_(), SEED, 0.3))
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
