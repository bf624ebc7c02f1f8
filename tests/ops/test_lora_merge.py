"""lora_merge_: right in every dtype, one rounding, and the weights stay as they are."""

import pytest
import torch
from lora_cases import ROWS, layer, update

from roli_fast import ops
from roli_fast.ops import native

PAIRS = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]


@pytest.fixture(params=native.BACKENDS)
def backend(request):
    """Every test that asks for it runs on both implementations."""
    with ops.use_backend(request.param):
        yield request.param


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


def test_by_hand(backend):
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


def test_a_merged_layer_computes_what_an_unmerged_one_does(backend):
    rows = ROWS["q and v"]
    case = layer(rows)
    (weight,) = merged_of([case], [rows])
    apart = ops.lora_linear(*case.values(), scale=0.7, rows=rows)
    merged = torch.nn.functional.linear(case["x"], weight, case["bias"])
    assert torch.allclose(apart, merged, rtol=0, atol=2e-5)


def test_merging_again_gives_the_same_bits(backend):
    """Second buffers: nothing drifts however often one merges, and parameters are welcome."""
    case = {name: torch.nn.Parameter(value) for name, value in layer().items()}
    target, results = torch.empty_like(case["weight"], requires_grad=False), []
    lists = [[case[name]] for name in ("weight", "a", "b")]
    for _ in range(3):
        version = target._version
        ops.lora_merge_([target], *lists, scales=[0.7])
        assert target._version > version
        results.append(target.clone())
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


def test_strided_weights_and_buffers(backend):
    case = layer()
    (expected,) = merged_of([case], None)
    target = torch.zeros(20, 24).t()
    turned = case["weight"].t().contiguous().t()
    ops.lora_merge_([target], [turned], [case["a"]], [case["b"]], scales=[0.7])
    assert torch.allclose(target, expected, rtol=0, atol=1e-6)
