"""The value that says how passes are made, what it accepts and leads to; and what passes cost."""

from typing import Any

import pytest
import torch
from tiny_models import Mixed, images
from torch import nn

from roli_fast.engine import Cost, Engine, bound, plain
from roli_fast.errors import ArgumentError, ArgumentTypeError


def test_the_default_runs_the_model_itself() -> None:
    model = Mixed()
    assert Engine().bind(model).passes() is model
    assert (
        Engine(attention="fused", channels_last=False, batch_size=4).bind(model).passes() is model
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_dtypes_have_names(name: Any, dtype: torch.dtype) -> None:
    engine = Engine(dtype=name)
    assert engine.dtype is dtype and engine == Engine(dtype=dtype)
    assert hash(engine) == hash(Engine(dtype=dtype))
    assert engine.low_precision_dtype is (None if dtype == torch.float32 else dtype)


@pytest.mark.parametrize(
    ("dtype", "channels_last", "expected"),
    [
        ("float32", "auto", False),
        ("bfloat16", "auto", True),
        ("float16", "auto", True),
        ("float32", True, True),
        ("bfloat16", False, False),
    ],
)
def test_where_maps_lie_in_channels_last(dtype: Any, channels_last: Any, expected: bool) -> None:
    assert Engine(dtype=dtype, channels_last=channels_last).in_channels_last is expected


def test_the_plain_one_has_the_same_batches_and_nothing_else() -> None:
    engine = Engine(
        dtype=torch.bfloat16,
        batch_size=3,
        merge=False,
        attention="products",
        channels_last=True,
        fold=True,
        compile=True,
    )
    assert engine.plain == Engine(batch_size=3, merge=False)
    model = Mixed()
    assert plain(engine.bind(model)).engine == engine.plain
    assert plain(model).model is model and plain(model).engine == Engine()


def test_what_a_model_is_bound_to() -> None:
    model, engine = Mixed(), Engine(batch_size=3)
    mine = engine.bind(model)
    assert (mine.model, mine.engine) == (model, engine)
    assert bound(mine) is mine
    assert bound(model).engine == Engine() and bound(model, engine).engine is engine
    with pytest.raises(ArgumentError, match="`model`: expected a model without an engine"):
        bound(mine, Engine())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float64}, "`dtype`: expected torch.float32.*got torch.float64"),
        ({"dtype": "bf16"}, "`dtype`: expected .*or the name of one, got 'bf16'"),
        ({"dtype": None}, "`dtype`.*got None"),
        ({"batch_size": 0}, "`batch_size`: expected an integer >= 1 or None, got 0"),
        ({"batch_size": True}, "`batch_size`"),
        ({"batch_size": 2.0}, "`batch_size`"),
        ({"merge": "auto"}, "`merge`: expected True or False, got 'auto'"),
        ({"merge": 1}, "`merge`: expected True or False, got 1"),
        ({"attention": "flash"}, "`attention`: expected 'auto' or 'fused' or 'products', got 'fla"),
        ({"channels_last": None}, "`channels_last`: expected 'auto' or True or False, got None"),
        ({"fold": "yes"}, "`fold`: expected 'auto' or True or False, got 'yes'"),
        ({"cuda_graph": "always"}, "`cuda_graph`: expected 'auto' or True or False, got 'always'"),
        ({"compile": None}, "`compile`: expected True or False, got None"),
    ],
)
def test_wrong_fields_are_named(options: Any, message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        Engine(**options)


def test_a_script_module_is_run_as_it_is_alone() -> None:
    with pytest.deprecated_call():
        scripted: Any = torch.jit.trace(nn.Flatten(), images(2, 3, 4, 4), check_trace=False)
    assert Engine(batch_size=2).bind(scripted).passes() is scripted
    with pytest.raises(ArgumentTypeError, match="`model`: expected a plain nn.Module"):
        Engine(channels_last=True).bind(scripted)


def test_sum_and_difference() -> None:
    first, second = Cost(1, 2, 3, 4), Cost(10, 20, 30, 40)
    both = first + second
    assert (both.forwards, both.backwards) == (11, 22)
    assert (both.forward_images, both.backward_images) == (33, 44)
    last = both - first
    assert last == second
    assert (last.forward_images, last.backward_images) == (30, 40)
