"""The LoRA ops against wrong and strange arguments, one at a time and in random combinations.

A call either gives the formula's result, or raises an error that names an argument; a refused call
and a layer change nothing, the merge only its buffers.
"""

import random
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fuzz_values import NO_TENSOR, VIEWS, WRONG, WRONG_TENSORS, Change, fixed, own, strided
from test_fuzz import clean, memory_of, readable, same, snapshot
from torch import Tensor

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError

EITHER, RIGHT = "either", "right"
IN, OUT, RANK = 8, 12, 2
ROWS = ((0, 4), (8, 12))
RANGES = [
    *fixed(WRONG, 0.5, "x", object(), (), ((0, 4), (2, 6)), ((4, 0), (8, 12))),
    *fixed(WRONG, ((0, 4), (9, 13)), ((0, 4), (8, 12), (12, 12)), ((0.0, 4), (8, 12)), (0, 4)),
    *fixed(EITHER, None, ((0, 4),), ((0, 12),)),  # `b` may be blamed as well
    *fixed(RIGHT, [[0, 4], [8, 12]], ((8, 12), (0, 4))),
]
TENSOR = [
    *fixed(WRONG, 0.5, *NO_TENSOR),
    *VIEWS,
    *WRONG_TENSORS,
    own("fp64", EITHER, lambda v: v.double()),
    own("bf16", EITHER, lambda v: v.bfloat16()),
    own("turned", EITHER, lambda v: v.transpose(0, -1)),
    own("one row more", EITHER, lambda v: torch.cat([v, v[:1]])),
    own("empty", EITHER, lambda v: v[:0]),
]
NUMBER = fixed(WRONG, None, *NO_TENSOR, float("nan"), float("inf"), 10**400)
LAYER = {
    **dict.fromkeys(("x", "weight", "a", "b"), [*fixed(WRONG, None), *TENSOR]),
    "bias": [*fixed(RIGHT, None), *TENSOR],
    "scale": [*NUMBER, *fixed(RIGHT, 0, -2, 1e-30)],
    "dropout": [*NUMBER, *fixed(WRONG, -0.1, 1.0, 2), *fixed(RIGHT, 0)],
    "rows": RANGES,
    "seed": [
        *fixed(WRONG, 7, *NO_TENSOR),
        *fixed(RIGHT, None),
        own("float", WRONG, lambda v: v.float()),
        own("two", WRONG, lambda v: torch.zeros(2, dtype=torch.int64)),
        own("sparse", WRONG, lambda v: v.to_sparse()),
        own("strided", RIGHT, strided),
        own("0-d", WRONG, lambda v: v[0]),
    ],
}


def tensors(rng: random.Random) -> dict[str, Any]:
    """A layer of two ranges of rows, in fp32 or fp64."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    sizes = {"x": (3, IN), "weight": (OUT, IN), "bias": (OUT,), "a": (2 * RANK, IN), "b": (8, RANK)}
    dtype = rng.choice((torch.float32, torch.float64))
    drawn = {n: torch.randn(s, generator=generator, dtype=dtype) for n, s in sizes.items()}
    return {**drawn, "scale": 0.5, "dropout": 0.0, "seed": torch.tensor([5]), "rows": ROWS}


def update(values: dict[str, Any]) -> Tensor:
    """scale * B A on the rows, in fp64."""
    a, b = values["a"].double(), values["b"].double()
    delta, first, rank = torch.zeros(OUT, IN, dtype=torch.float64), 0, values["b"].shape[1]
    for index, (start, stop) in enumerate(values["rows"]):
        part = slice(first, first + stop - start)
        delta[start:stop] = b[part] @ a[index * rank : (index + 1) * rank]
        first += stop - start
    return float(values["scale"]) * delta


def layer_is_right(values: dict[str, Any], result: Tensor) -> None:
    if not all(readable(v) for v in (*values.values(), result) if isinstance(v, Tensor)):
        return
    copies = {name: clean(value) for name, value in values.items()}
    weight = copies["weight"].double() + update(copies)
    bias = 0 if copies["bias"] is None else copies["bias"].double()
    expected = copies["x"].double() @ weight.T + bias
    torch.testing.assert_close(clean(result).double(), expected, rtol=0.1, atol=0.1)


def merge_is_right(values: dict[str, Any], result: None) -> None:
    if not all(readable(v) for v in values.values() if isinstance(v, Tensor)):
        return
    copies = {name: clean(value) for name, value in values.items()}
    expected = copies["weight"].double() + update(copies)
    torch.testing.assert_close(copies["merged"].double(), expected, rtol=0.1, atol=0.1)


def layer(values: dict[str, Any]) -> Tensor:
    order = [values[name] for name in ("x", "weight", "bias", "a", "b")]
    options = {name: values[name] for name in ("scale", "dropout", "seed", "rows")}
    return ops.lora_linear(*order, **options)


def merge(values: dict[str, Any]) -> None:
    """Beside a layer that is in order."""
    good = tensors(random.Random(0))
    good["merged"] = torch.empty_like(good["weight"])
    lists = [[good[name], values[name]] for name in ("merged", "weight", "a", "b")]
    ops.lora_merge_(*lists, scales=[0.5, values["scale"]], rows=[ROWS, values["rows"]])
    merge_is_right(good, None)


def trial(run: Any, check: Any, values: dict, changes: dict[str, Change], rng: Any) -> str:
    given = dict(values)
    values |= {name: change.make(name, given) for name, change in changes.items()}
    before = snapshot(values)
    only = next(iter(changes.items())) if len(changes) == 1 else None
    story = f"{ ({n: c.name for n, c in changes.items()}) }"
    refusal = None
    try:
        with nullcontext() if rng.random() < 0.5 else torch.no_grad():
            result = run(values)
    except (ArgumentError, ArgumentTypeError) as error:
        refusal = str(error)
        named = re.match(r"`(\w+)`: expected ", refusal)
        assert named and named[1].rstrip("s") in {n.rstrip("s") for n in values}, refusal
        assert not only or only[1].outcome != RIGHT, f"{story}: refused: {error}"
        right = only and named[1].rstrip("s") == only[0].rstrip("s")
        assert not only or only[1].outcome != WRONG or right, f"{story}: {error}"
    except Exception as error:
        raise AssertionError(f"{story}: {type(error).__name__}: {error}") from error
    else:
        assert not only or only[1].outcome != WRONG, f"{story}: was taken"
        check(values, result)
    for name, memory in before.items():
        if refusal or name != "merged":
            assert same(memory_of(values[name]), memory), f"{story}: {name} was changed"
    return "refused" if refusal else "taken"


CASES = {"lora_linear": (layer, layer_is_right), "lora_merge_": (merge, merge_is_right)}


def arguments(op: str, rng: random.Random) -> tuple[dict[str, Any], dict[str, list[Change]]]:
    values = tensors(rng)
    if op == "lora_linear":
        return values, LAYER
    del values["x"], values["bias"], values["dropout"], values["seed"]
    values["merged"] = torch.full_like(values["weight"], 7.0)
    changes = {name: LAYER[name] for name in ("weight", "a", "b", "scale", "rows")}
    return values, {**changes, "merged": [*fixed(WRONG, None), *TENSOR]}


@pytest.mark.parametrize("op", CASES)
def test_one_change(op):
    rng = random.Random(op)
    run, check = CASES[op]
    for name in arguments(op, rng)[1]:
        for change in arguments(op, rng)[1][name]:
            trial(run, check, arguments(op, rng)[0], {name: change}, rng)


@pytest.mark.parametrize("op", CASES)
def test_random_changes(op):
    rng = random.Random(op)
    for _ in range(300):
        random_trial(op, rng)


def random_trial(op: str, rng: random.Random) -> str:
    values, changes = arguments(op, rng)
    names = rng.sample(list(changes), rng.randrange(3) + 1)
    return trial(*CASES[op], values, {name: rng.choice(changes[name]) for name in names}, rng)
