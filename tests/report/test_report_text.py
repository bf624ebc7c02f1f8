"""Numbers as the report writes them."""

from collections.abc import Callable
from typing import Any

import pytest

from roli_fast.report import text
from roli_fast.running.text import duration


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        (text.number, (0.95149,), "0.951"),
        (text.number, (1234.5,), "1,234"),
        (text.number, (1 - 1e-12,), "1.00"),
        (text.number, (0.099996,), "0.100"),
        (text.number, (-0.5,), "−0.500"),
        (text.number, (0.00031,), "0.00031"),
        (text.number, (3.14159e-7,), "3.1e−07"),
        (text.number, (float("nan"),), "–"),
        (text.number, (True,), "–"),
        (text.given, (2.5e-5,), "2.5e-05"),
        (text.given, (float("inf"),), "–"),
        (text.percent, (0.66017,), "66.0 %"),
        (text.percent_within, (0.66017, 0.025), "66.0 ± 2.5 %"),
        (text.points, (-0.153,), "−15.3 points"),
        (text.over_seeds, ([1.0, 2.0, 3.0],), "2.00 ± 1.0"),
        (text.over_seeds, ([100.0, 100.002],), "100 ± 0.0014"),
        (text.over_seeds, ([0.001, 0.3],), "0.150 ± 0.21"),
        (text.percent_over_seeds, ([0.5, 0.6],), "55.0 ± 7.1 %"),
        (text.change, ([1.0], [24.83], text.over_seeds), "1.00 → 24.8"),
        (text.change, ([], [], text.over_seeds), "–"),
        (text.p_value, (0.00146,), "p = 0.0015"),
        (text.p_value, (1e-14,), "p < 0.0001"),
        (text.p_value, (None,), "p undefined"),
        (text.radius, ("linf", 8 / 255), "linf 8/255"),
        (text.radius, ("linf", 0.08), "linf 0.08 (20.4/255)"),
        (text.radius, ("l2", 0.5), "l2 0.5"),
        (duration, (4.24,), "4.2 s"),
        (duration, (3899,), "1 h 05 min"),
        (duration, (59.7,), "1 min 00 s"),
        (text.count, (1, "classes"), "1 class"),
        (text.count, (10000, "test images"), "10,000 test images"),
        (text.listed, (["a", "b", "c"],), "a, b and c"),
        (text.method_name, ("lp_ft",), "LP-FT"),
    ],
)
def test_a_number_is_said(make: Callable[..., str], arguments: tuple[Any, ...], said: str) -> None:
    assert make(*arguments).replace("\u00a0", " ") == said
