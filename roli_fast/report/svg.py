"""Charts as inline SVG: they scale, print, follow dark mode and need no library or script.

Colours are the classes c0 to c7 of page/style.css, so the page decides them. Widths are made for a
phone: a chart is 360 units wide and the page sets several side by side where there is room.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from xml.etree import ElementTree as ET

from markupsafe import Markup

WIDTH, HEIGHT = 360, 240
TOP, BOTTOM, LEFT, RIGHT = 10, 40, 46, 12
LETTER = 6.6
"""Mean width of a letter at the font size of the charts."""

LOOKS = 8
"""Colours that there are."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """An axis: what it shows, its range (None: that of the data), its marks if they are given."""

    label: str
    low: float | None = None
    high: float | None = None
    ticks: Sequence[tuple[float, str]] = ()
    log: bool = False
    """Of a vertical axis: powers of ten in equal steps; what is not above 0 is left out."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        label: what its points are called when one rests on them.
        points: (x, y), those that are not finite are left out.
        look: number of its colour.
        dash: number of its dashes; 0 is drawn through.
        band: (x, low, high) of a shaded band.
        thin: one of several that are drawn faintly, below the others.
        marks: a circle at every point.
        dots: single points that are marked, with their text.
        sizes: radii of the circles at the points; 3 without.
        hollow: circles are not filled.
    """

    label: str
    points: Sequence[Point]
    look: int = 0
    dash: int = 0
    band: Sequence[tuple[float, float, float]] = ()
    thin: bool = False
    marks: bool = False
    dots: Sequence[tuple[float, float, str]] = ()
    sizes: Sequence[float] = ()
    hollow: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a dot chart: label, and (value, spread or None, single values, look) each."""

    label: str
    dots: Sequence[tuple[float, float | None, Sequence[float], int]]


def lines(
    title: str,
    drawn: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    diagonal: bool = False,
    bars: Sequence[tuple[float, float, float]] = (),
    show: Callable[[float, float], str] | None = None,
) -> Markup:
    """Lines over two axes.

    Args:
        title: read aloud in place of the chart.
        drawn: the lines; later ones lie above.
        x: the horizontal axis.
        y: the vertical one.
        diagonal: draw y = x, of the same units.
        bars: (low, high, share of the height) along the bottom, a histogram.
        show: text of a point from its x and y.
    """
    show = show or (lambda a, b: f"{a:.4g}, {b:.4g}")
    if y.log:
        drawn, y, show = [_in_powers(line) for line in drawn], _powers(drawn, y), _unlogged(show)
    drawn = [_finite(line) for line in drawn]
    xs = [p[0] for line in drawn for p in line.points]
    ys = [p[1] for line in drawn for p in line.points]
    ys += [v for line in drawn for p in line.band for v in p[1:]]
    across, up = _range(x, xs), _range(y, ys)
    longest = max(len(text) for _, text in y.ticks or _ticks(*up))
    frame = _Frame(title, across, up, max(LEFT, round(24 + LETTER * longest)))
    frame.axes(x, y)
    for low, high, share in bars:
        frame.bar(low, high, share)
    if diagonal:
        (x0, x1), _ = frame.ranges
        frame.path([(x0, x0), (x1, x1)], "rule dashed")
    for line in drawn:
        frame.area(line)
    for line in sorted(drawn, key=lambda line: not line.thin):
        frame.line(line, show)
    return frame.markup()


def dots(title: str, rows: Sequence[Row], x: Axis, show: Callable[[float], str]) -> Markup:
    """Rows of values with their spreads, and single values as small dots.

    Args:
        title: read aloud in place of the chart.
        rows: from the top.
        x: the axis of the values.
        show: text of a value.
    """
    longest = max(len(row.label) for row in rows)
    left = min(150, round(longest * LETTER) + 12)
    rooms = [12 + 12 * len(row.dots) for row in rows]
    every = [v for row in rows for d in row.dots for v in _extent(d)]
    height = TOP + BOTTOM + sum(rooms)
    frame = _Frame(title, _range(x, every), (0, 1), left, height)
    frame.axes(x, None)
    top = float(TOP)
    for row, room in zip(rows, rooms, strict=True):
        text = row.label if len(row.label) * LETTER < left else _cut(row.label, left)
        frame.text(left - 8, top + room / 2 + 4, text, "end", whole=row.label)
        for place, dot in enumerate(row.dots):
            frame.dot(top + 12 + 12 * place, dot, f"{row.label}: {show(dot[0])}")
        top += room
        frame.rule(top)
    return frame.markup()


def furthest(drawn: Sequence[Line]) -> float:
    """The largest x of all points."""
    return max((x for line in drawn for x, _ in line.points), default=1.0)


class _Frame:
    """The drawing under way: pixels from values, and the elements."""

    def __init__(self, title: str, x: Point, y: Point, left: float, height: float = HEIGHT) -> None:
        self.ranges = (x, y)
        self.left, self.height = left, height
        self.root = ET.Element(
            "svg",
            {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "aria-label": title},
        )

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.ranges[0]
        return self.left + (value - low) / (high - low) * (WIDTH - RIGHT - self.left)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.ranges[1]
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - BOTTOM - TOP)

    def add(self, tag: str, css: str, **values: float | str) -> ET.Element:
        """One element; numbers are rounded to a tenth of a pixel."""
        plain = {
            name.replace("_", "-"): f"{v:.1f}" if isinstance(v, float) else str(v)
            for name, v in values.items()
        }
        return ET.SubElement(self.root, tag, {"class": css, **plain})

    def text(self, x: float, y: float, text: str, anchor: str, *, whole: str = "") -> ET.Element:
        """A word; `whole` is what it stands for."""
        found = self.add("text", "", x=float(x), y=float(y), text_anchor=anchor)
        found.text = text
        if whole and whole != text:
            ET.SubElement(found, "title").text = whole
            found.text = None
            found[0].tail = text
        return found

    def axes(self, x: Axis, y: Axis | None) -> None:
        """Grid, numbers and labels."""
        bottom = float(self.height - BOTTOM)
        xticks = _thinned(x.ticks, self.x) or _ticks(*self.ranges[0])
        for value, text in xticks:
            px = self.x(value)
            self.add("line", "grid", x1=px, x2=px, y1=float(TOP), y2=bottom)
            room = WIDTH - len(text) * LETTER / 2  # the last number stays inside
            self.text(min(px, room), bottom + 16, text, "middle")
        self.add("line", "rule", x1=float(self.left), x2=float(WIDTH - RIGHT), y1=bottom, y2=bottom)
        middle = (self.left + WIDTH - RIGHT) / 2
        self.text(middle, self.height - 5, x.label, "middle")
        if y is None:
            return
        for value, text in y.ticks or _ticks(*self.ranges[1]):
            py = self.y(value)
            self.add("line", "grid", x1=float(self.left), x2=float(WIDTH - RIGHT), y1=py, y2=py)
            self.text(self.left - 6, py + 4, text, "end")
        label = self.text(12, (TOP + bottom) / 2, y.label, "middle")
        label.set("transform", f"rotate(-90 12 {(TOP + bottom) / 2:.1f})")

    def rule(self, y: float) -> None:
        """A line between rows."""
        self.add("line", "grid", x1=0.0, x2=float(WIDTH - RIGHT), y1=y, y2=y)

    def bar(self, low: float, high: float, share: float) -> None:
        """A column of a histogram, at most a third of the height."""
        tall = share * (self.height - TOP - BOTTOM) / 3
        x, wide = self.x(low) + 0.5, self.x(high) - self.x(low) - 1
        y = self.height - BOTTOM - tall
        self.add("rect", "bar", x=x, y=y, width=max(wide, 0.5), height=tall)

    def path(self, points: Sequence[Point], css: str) -> None:
        """A line through points."""
        if len(points) > 1:
            steps = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points)
            self.add("polyline", css, points=steps)

    def area(self, line: Line) -> None:
        """The band of a line."""
        if len(line.band) > 1:
            there = [(x, high) for x, _, high in line.band]
            back = [(x, low) for x, low, _ in reversed(line.band)]
            steps = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in there + back)
            self.add("polygon", f"band c{line.look % LOOKS}", points=steps)

    def line(self, line: Line, show: Callable[[float, float], str]) -> None:
        """A line with its marks."""
        colour = f"c{line.look % LOOKS}"
        weight = "thin" if line.thin else "line"
        self.path(line.points, f"{weight} {colour} d{line.dash % 4}")
        fill = "hollow" if line.hollow else "dot"
        shown = line.marks or len(line.points) == 1 or bool(line.sizes)
        for number, (x, y) in enumerate(line.points if shown else ()):
            size = line.sizes[number] if line.sizes else 3.0
            self.circle(
                self.x(x), self.y(y), size, f"{fill} {colour}", f"{line.label}: {show(x, y)}"
            )
        for x, y, text in line.dots:
            self.circle(self.x(x), self.y(y), 3.5, f"dot {colour}", text)

    def circle(self, x: float, y: float, size: float, css: str, text: str) -> None:
        """A point that says `text` when one rests on it."""
        ET.SubElement(self.add("circle", css, cx=x, cy=y, r=float(size)), "title").text = text

    def dot(
        self, y: float, dot: tuple[float, float | None, Sequence[float], int], text: str
    ) -> None:
        """A value with its spread and the single values."""
        value, spread, singles, look = dot
        colour = f"c{look % LOOKS}"
        if spread:
            low, high = self.x(value - spread), self.x(value + spread)
            self.add("line", f"line {colour}", x1=low, x2=high, y1=y, y2=y)
        for single in singles if len(singles) > 1 else ():
            self.add("circle", f"single {colour}", cx=self.x(single), cy=y, r=2.2)
        self.circle(self.x(value), y, 4.5, f"dot {colour}", text)

    def markup(self) -> Markup:
        """The drawing; ElementTree has escaped every text in it."""
        return Markup(ET.tostring(self.root, encoding="unicode"))  # noqa: S704


def _log(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


def _in_powers(line: Line) -> Line:
    """The line of the logarithms; marked points are those of the line itself."""
    points = [(x, _log(y)) for x, y in line.points]
    band = [(x, _log(low), _log(high)) for x, low, high in line.band]
    return replace(line, points=points, band=band, dots=())


def _powers(drawn: Sequence[Line], y: Axis) -> Axis:
    """An axis from one power of ten to another that holds all values."""
    found = [v for line in drawn for _, value in line.points if math.isfinite(v := _log(value))]
    low, high = (math.floor(min(found)), math.ceil(max(found))) if found else (0, 1)
    high = max(high, low + 1)
    step = max(1, (high - low) // 6)
    ticks = [(float(k), _power(k)) for k in range(low, high + 1, step)]
    return Axis(y.label, low, high, ticks)


def _power(k: int) -> str:
    """ "0.1", "100", "10⁻⁵"."""
    raised = str(k).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{10.0**k:g}" if abs(k) < 3 else f"10{raised}"


def _unlogged(show: Callable[[float, float], str]) -> Callable[[float, float], str]:
    return lambda x, y: show(x, 10**y)


def _finite(line: Line) -> Line:
    kept = [number for number, point in enumerate(line.points) if all(map(math.isfinite, point))]
    sizes = [line.sizes[i] for i in kept] if line.sizes else ()
    band = [b for b in line.band if all(map(math.isfinite, b))]
    return replace(line, points=[line.points[i] for i in kept], sizes=sizes, band=band)


def _extent(dot: tuple[float, float | None, Sequence[float], int]) -> list[float]:
    value, spread, singles, _ = dot
    return [value - (spread or 0), value + (spread or 0), *singles]


def _range(axis: Axis, values: Sequence[float]) -> Point:
    """Of the axis: as given, else that of the values, widened to whole steps."""
    found = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low = min(found) if axis.low is None else axis.low
    high = max(found) if axis.high is None else axis.high
    size = max(abs(low), abs(high))
    if high - low <= 1e-12 * size or size < 1e-300:
        high = low + (size if size > 1e-300 else 1.0)
    step = _step(low, high)
    low = math.floor(low / step + 1e-9) * step if axis.low is None else low
    high = math.ceil(high / step - 1e-9) * step if axis.high is None else high
    return low, high


def _step(low: float, high: float) -> float:
    """1, 2 or 5 times a power of ten, for about five steps."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= rough * 0.999)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    step = _step(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, _tick(k * step, step)) for k in range(first, last + 1)]


def _tick(value: float, step: float) -> str:
    """As many places as the step has; very small and very large ones with a power of ten."""
    if not 1e-4 <= step < 1e6:
        return f"{value:.3g}".replace("-", "−")
    places = max(0, -math.floor(math.log10(step)))
    return f"{value:,.{places}f}".replace("-", "−")


def _thinned(
    ticks: Sequence[tuple[float, str]], place: Callable[[float], float]
) -> list[tuple[float, str]]:
    """Those whose texts do not run into one another."""
    kept: list[tuple[float, str]] = []
    end = -math.inf
    for value, text in ticks:
        half = len(text) * LETTER / 2
        if place(value) - half > end:
            kept.append((value, text))
            end = place(value) + half + 4
    return kept


def _cut(text: str, width: float) -> str:
    most = max(4, int((width - 12) / LETTER))
    return text if len(text) <= most else f"{text[: most - 1]}…"
