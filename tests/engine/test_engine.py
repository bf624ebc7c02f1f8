"""The value that says how passes are made, what it accepts and leads to."""

from typing import Any

import pytest
import torch
from tiny_models import Mixed
from torch import nn

from roli_fast.engine import Engine, bound, plain
from roli_fast.errors import ArgumentError, ArgumentTypeError


def test_the_default_runs_the_model_itself() -> None:
    model = Mixed()
    for engine in (Engine(), Engine(attention="fused", channels_last=False, batch_size=4)):
        assert engine.bind(model).passes() is model


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_dtypes_have_names(name: Any) -> None:
    engine, dtype = Engine(dtype=name), getattr(torch, name)
    assert engine == Engine(dtype=dtype) and hash(engine) == hash(Engine(dtype=dtype))
    low = dtype != torch.float32
    assert engine.low_precision_dtype is (dtype if low else None)
    assert engine.in_channels_last is engine.folds is low


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
    assert bound(mine) is mine and bound(nn.DataParallel(model)).model is model
    assert bound(model).engine == Engine() and bound(model, engine).engine is engine
    with pytest.raises(ArgumentError, match="`model`: expected a model without an engine"):
        bound(mine, Engine())
    with pytest.raises(ArgumentTypeError, match="`model`: expected a callable.*got str"):
        bound("resnet18")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float64}, "`dtype`: expected torch.float32.*got torch.float64"),
        ({"dtype": "bf16"}, "`dtype`: expected .*or the name of one, got 'bf16'"),
        ({"batch_size": 0}, "`batch_size`: expected an integer >= 1 or None, got 0"),
        ({"attention": "flash"}, "`attention`: expected 'auto' or 'fused' or 'products', got 'fla"),
        ({"fold": "yes"}, "`fold`: expected 'auto' or True or False, got 'yes'"),
    ],
)
def test_wrong_fields_are_named(options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Engine(**options)
