"""Charts: where points lie, and that nothing but numbers and escaped texts gets in."""

from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roli_fast.report.plots import over_seeds
from roli_fast.report.subjects import Key
from roli_fast.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Line,
    Row,
    dots,
    lines,
    span,
    ticks,
)

X, Y = Axis("x", low=0, high=10), Axis("y", low=0, high=100)


def places(root: ET.Element) -> list[tuple[float, float]]:
    """The points of the first line."""
    line = root.find("polyline[@points]")
    assert line is not None
    pairs = (pair.split(",") for pair in line.attrib["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def test_points_lie_where_the_axes_say_and_what_is_not_finite_is_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    points = [(0, 0), (1, nan), (2, inf), (5, 50), (10, 100)]
    band = [(0, nan, 1), (1, 0, 1), (2, 0, 1)]
    line = Line("a", points, sizes=[1, 2, 3, 4, 5], band=band)
    title = '<a> & "b"'
    root = ET.fromstring(lines(title, [line], X, Y).svg)
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    middle = ((left + right) / 2, (TOP + bottom) / 2)
    assert places(root) == [(left, bottom), middle, (right, TOP)]
    assert [c.attrib["r"] for c in root.findall("circle")] == ["1.0", "4.0", "5.0"]
    assert len(root.find("polygon").attrib["points"].split()) == 4  # type: ignore[union-attr]
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == f"{title}, y: a 0 to 100"
    nothing = ET.fromstring(lines("t", [Line("a", [])], Axis("x"), Axis("y")).svg)
    assert nothing.find("polyline") is None


def test_a_logarithmic_axis_has_powers_of_ten_in_equal_steps() -> None:
    points = [(0.0, 0.1), (1.0, 10.0), (2.0, 1000.0), (3.0, 0.0), (4.0, -1.0)]
    root = ET.fromstring(lines("t", [Line("a", points)], X, Axis("y", log=True)).svg)
    heights = [y for _, y in places(root)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])
    assert len(heights) == 3  # what is not above 0 is left out
    assert [t.text for t in root.findall("text")][-6:] == ["0.1", "1", "10", "100", "1000", "y"]


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-2, 2, ["−2", "−1", "0", "1", "2"]),
        (0, 20000, ["0", "5,000", "10,000", "15,000", "20,000"]),
    ],
)
def test_ticks_are_round(low: float, high: float, texts: list[str]) -> None:
    assert [text for _, text in ticks(low, high)] == texts


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5))
@example([1.5e-28, 2.9e-94])
@example([5e-324])
@example([0.0, 0.0])
@settings(max_examples=60, deadline=None)
def test_every_value_lies_within_the_axis(values: list[float]) -> None:
    low, high = span(Axis("x"), values)
    room = 1e-6 * (abs(low) + abs(high))
    assert low < high and low - room <= min(values) and max(values) <= high + room
    assert 2 <= len(ticks(low, high)) <= 12


def test_rows_of_dots_have_values_spreads_and_seeds() -> None:
    rows = [Row("<b>", 50.0, 10.0, [40.0, 60.0], 0), Row("a name " * 9, 20.0, None, [20.0], 1)]
    root = ET.fromstring(dots("t", rows, Axis("x", low=0, high=100)).svg)
    (spread,) = (line for line in root.findall("polyline") if line.attrib["class"] == "line c0")
    ends = [float(pair.split(",")[0]) for pair in spread.attrib["points"].split()]
    single = [c for c in root.findall("circle") if c.attrib["class"].startswith("single")]
    assert [float(c.attrib["cx"]) for c in single] == ends
    middle = [c for c in root.findall("circle") if c.attrib["class"] == "dot c0"]
    assert float(middle[0].attrib["cx"]) == pytest.approx(sum(ends) / 2, abs=0.1)
    texts = [text.text or "" for text in root.findall("text")]
    assert "<b>" in texts and any(text.endswith("…") for text in texts)


def test_a_line_is_the_mean_of_the_seeds_where_all_have_a_value() -> None:
    """Of 1 and 3 the mean is 2 and the deviation the root of 2; a seed without values is none."""
    line = over_seeds(Key("a", 3, 1), [{0.0: 1.0, 1.0: 5.0}, {0.0: 3.0}, {}])
    assert (line.points, line.look, line.dash) == ([(0.0, 2.0)], 3, 1)
    assert line.band == [(0.0, pytest.approx(2 - 2**0.5), pytest.approx(2 + 2**0.5))]
    assert over_seeds(Key("a", 0), [{0.0: 1.0}]).band == []
