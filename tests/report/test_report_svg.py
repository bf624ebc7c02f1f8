"""Charts: where points lie, and that nothing but numbers and escaped texts gets in."""

from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
    _range,
    _ticks,
    dots,
    lines,
)

X, Y = Axis("x", low=0, high=10), Axis("y", low=0, high=100)


def drawn(line: Line, **more: object) -> ET.Element:
    """A chart of one line, parsed."""
    return ET.fromstring(lines("a title", [line], X, Y, **more))  # type: ignore[arg-type]


def places(root: ET.Element) -> list[tuple[float, float]]:
    """The points of the first line."""
    line = root.find("polyline[@points]")
    assert line is not None
    pairs = (pair.split(",") for pair in line.attrib["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def test_points_lie_where_the_axes_say() -> None:
    root = drawn(Line("a", [(0, 0), (5, 50), (10, 100)]))
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    middle = ((left + right) / 2, (TOP + bottom) / 2)
    assert places(root) == [(left, bottom), middle, (right, TOP)]
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == "a title"


def test_what_is_not_finite_is_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    points = [(0, 0), (1, nan), (2, inf), (10, 100)]
    root = drawn(Line("a", points, sizes=[1, 2, 3, 4], band=[(0, nan, 1), (1, 0, 1), (2, 0, 1)]))
    assert len(places(root)) == 2
    assert [c.attrib["r"] for c in root.findall("circle")] == ["1.0", "4.0"]
    assert len(root.find("polygon").attrib["points"].split()) == 4  # type: ignore[union-attr]


def test_a_point_says_what_it_is() -> None:
    root = drawn(Line("<a>", [(1, 2)]), show=lambda x, y: f"{x} and {y}")
    title = root.find("circle/title")
    assert title is not None and title.text == "<a>: 1 and 2"


def test_a_logarithmic_axis_has_powers_of_ten_in_equal_steps() -> None:
    points = [(0.0, 0.1), (1.0, 10.0), (2.0, 1000.0), (3.0, 0.0), (4.0, -1.0)]
    line = Line("a", points, marks=True)
    root = ET.fromstring(lines("t", [line], X, Axis("y", log=True), show=lambda _, y: f"{y:.3g}"))
    heights = [y for _, y in places(root)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])
    assert len(heights) == 3  # what is not above 0 is left out
    assert [t.text for t in root.findall("circle/title")] == ["a: 0.1", "a: 10", "a: 1e+03"]
    texts = [t.text for t in root.findall("text")]
    assert [t for t in texts if t in ("0.1", "1", "10", "100", "10³")] == [
        "10",
        "0.1",
        "1",
        "10",
        "100",
        "10³",
    ]


def test_no_values_are_an_empty_chart() -> None:
    root = ET.fromstring(lines("t", [Line("a", [])], Axis("x"), Axis("y")))
    assert root.find("polyline") is None


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 30.6, ["0", "10", "20", "30"]),
        (-2, 2, ["−2", "−1", "0", "1", "2"]),
        (0, 20000, ["0", "5,000", "10,000", "15,000", "20,000"]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[str]) -> None:
    assert [text for _, text in _ticks(low, high)] == ticks


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5))
@example([1.5e-28, 2.9e-94])
@example([5e-324])
@example([0.0, 0.0])
@settings(max_examples=60, deadline=None)
def test_every_value_lies_within_the_axis(values: list[float]) -> None:
    low, high = _range(Axis("x"), values)
    room = 1e-6 * (abs(low) + abs(high))
    assert low < high and low - room <= min(values) and max(values) <= high + room
    assert 2 <= len(_ticks(low, high)) <= 12


def test_rows_of_dots_have_values_spreads_and_seeds() -> None:
    rows = [Row("<b>", [(50.0, 10.0, [40.0, 60.0], 0)]), Row("c", [(20.0, None, [20.0], 1)])]
    root = ET.fromstring(dots("t", rows, Axis("x", low=0, high=100), lambda v: f"{v:.0f}"))
    assert [t.text for t in root.iter("title")] == ["<b>: 50", "c: 20"]
    spread = [x for x in root.findall("line") if x.attrib["class"] == "line c0"]
    assert len(spread) == 1
    singles = [c for c in root.findall("circle") if c.attrib["class"].startswith("single")]
    assert [float(c.attrib["cx"]) for c in singles] == [
        float(spread[0].attrib["x1"]),
        float(spread[0].attrib["x2"]),
    ]


def test_a_long_name_is_cut_and_kept_whole_beside() -> None:
    name = "a name that has no room beside the values"
    root = ET.fromstring(dots("t", [Row(name, [(1.0, None, [], 0)])], Axis("x"), str))
    found = [t for t in root.findall("text") if t.find("title") is not None]
    assert len(found) == 1
    title = found[0].find("title")
    assert title is not None and title.text == name
    assert (title.tail or "").endswith("…")
