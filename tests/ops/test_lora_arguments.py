"""What the LoRA ops refuse, and that the message names the argument."""

import math

import pytest
import torch
from lora_cases import layer

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError

NOT_TENSORS = (None, 0.5, [[0.5]], "x")
WRONG = (torch.zeros(24, 20, dtype=torch.int64), torch.zeros(24, 20).to_sparse())
NUMBERS = (math.nan, math.inf, None, "1", True, 1j, torch.tensor(1.0))
LINEAR = [
    *(("x", v) for v in (*NOT_TENSORS, *WRONG, torch.zeros(3, 19), torch.tensor(0.5))),
    *(("weight", v) for v in (*NOT_TENSORS, *WRONG, torch.zeros(24), torch.zeros(24, 20).double())),
    ("weight", torch.zeros(24, 20, device="meta")),
    *(("bias", v) for v in (0.5, torch.zeros(23), torch.zeros(24, 1), torch.zeros(24).half())),
    *(("a", v) for v in (*NOT_TENSORS, *WRONG, torch.zeros(2, 20), torch.zeros(3, 19))),
    *(("a", v) for v in (torch.zeros(3, 20).double(), torch.zeros(3, 20, device="meta"))),
    *(("b", v) for v in (*NOT_TENSORS, *WRONG, torch.zeros(23, 3), torch.zeros(24, 0))),
    *(("b", v) for v in (torch.zeros(24, 3).bfloat16(), torch.zeros(24, 3).double())),
    *(("scale", v) for v in NUMBERS),
    *(("dropout", v) for v in (*NUMBERS, 1.0, -0.1, 1)),
    *(("seed", v) for v in (3, "3", torch.zeros(1), torch.zeros(2, dtype=torch.int64))),
    ("seed", torch.zeros(1, dtype=torch.int64, device="meta")),
    *(("rows", v) for v in (0, "all", (), ((0, 25),), ((-1, 3),), ((5, 5),), ((9, 3),))),
    *(("rows", v) for v in (((0, 9), (8, 24)), ((0.0, 24.0),), ((False, 24),), ((0, 8, 24),))),
]


@pytest.mark.parametrize(("name", "value"), LINEAR, ids=lambda value: repr(value)[:40])
def test_lora_linear_names_a_wrong_argument(name, value):
    arguments = layer() | {"scale": 1.0, name: value}
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"^`{name}`: expected"):
        ops.lora_linear(*[arguments.pop(n) for n in ("x", "weight", "bias", "a", "b")], **arguments)


def lists() -> dict:
    case = layer()
    names = {"merged": torch.zeros(24, 20), "weights": case["weight"]}
    values = names | {"a": case["a"], "b": case["b"], "scales": 1.0, "rows": None}
    return {name: [value, value] for name, value in values.items()} | {
        "merged": [torch.zeros(24, 20), torch.zeros(24, 20)]
    }


MERGE = [
    *((name, v) for name in ("merged", "weights", "a", "b", "scales", "rows") for v in (3, "xy")),
    *((name, []) for name in ("weights", "a", "b", "scales", "rows")),
    *((name, [None, v]) for name in ("merged", "weights", "a", "b") for v in NOT_TENSORS),
    ("merged", [torch.zeros(24, 19)] * 2),
    ("merged", [torch.zeros(24, 20).double()] * 2),
    ("merged", [torch.zeros(1, 20).expand(24, 20)] * 2),
    ("merged", [torch.zeros(24, 20, device="meta")] * 2),
    ("merged", [torch.zeros(24, 20, requires_grad=True)] * 2),
    ("a", [torch.zeros(3, 20).double()] * 2),
    ("b", [torch.zeros(23, 3)] * 2),
    *(("scales", [1.0, v]) for v in NUMBERS),
    *(("rows", [None, v]) for v in (0, ((0, 25),), ((0, 9), (8, 24)))),
]


@pytest.mark.parametrize(("name", "value"), MERGE, ids=lambda value: repr(value)[:40])
def test_lora_merge_names_a_wrong_argument_and_writes_nothing(name, value):
    arguments = lists() | {name: value}
    buffers = lists()["merged"] if name == "merged" else arguments["merged"]
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"^`{name}`: expected"):
        ops.lora_merge_(*[arguments.pop(n) for n in ("merged", "weights", "a", "b")], **arguments)
    assert not any(buffer.any() for buffer in buffers)


def test_shared_memory_is_refused():
    good = lists()
    order = ("merged", "weights", "a", "b")
    for name in ("weights", "a", "b"):
        shared = torch.zeros(24, 20)
        view = {"weights": shared, "a": shared[:3], "b": shared.flatten()[:72].view(24, 3)}[name]
        arguments = good | {"merged": [shared, torch.zeros(24, 20)], name: [view, good[name][1]]}
        with pytest.raises(ArgumentError, match=f"`{name}`: expected memory apart from `merged`"):
            ops.lora_merge_(*(arguments[n] for n in order), scales=[1.0, 1.0])
    twice = [good["merged"][0]] * 2
    with pytest.raises(ArgumentError, match="`merged`: expected memory apart"):
        ops.lora_merge_(twice, *(good[n] for n in order[1:]), scales=[1.0, 1.0])


def test_the_message_gives_the_fix():
    with pytest.raises(ArgumentError) as caught:
        ops.lora_linear(*layer().values(), scale=1.0, rows=((0, 9), (8, 24)))
    assert str(caught.value) == (
        "`rows`: expected disjoint ranges ((start, stop), ...) of the 24 output rows, got "
        "((0, 9), (8, 24)). q and v of a fused qkv with width d: ((0, d), (2 * d, 3 * d))."
    )
