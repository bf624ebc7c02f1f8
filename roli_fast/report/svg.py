"""Charts as inline SVG: they scale, print, follow dark mode and need no library or script.

Colours are the classes c0 to c7 of page/style.css, so the page decides them. Widths are made for a
phone: a chart is 360 units wide and the page sets several side by side where there is room.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 360, 240
TOP, BOTTOM, LEFT, RIGHT = 10, 40, 46, 12
LETTER = 6.6
"""Mean width of a letter at the font size of the charts."""

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]


class Axis(NamedTuple):
    """An axis: what it shows, its range (None: that of the data), its marks if they are given; a
    vertical one may have powers of ten in equal steps, without what is not above 0."""

    label: str
    low: float | None = None
    high: float | None = None
    ticks: Ticks = ()
    log: bool = False


class Line(NamedTuple):
    """One line of a chart.

    Args:
        label: what it is, for the chart's alternative text.
        points: (x, y), those that are not finite are left out; one alone is a circle.
        look: number of its colour.
        dash: number of its dashes; 0 is drawn through.
        band: (x, low, high) of a shaded band.
        sizes: radius of a circle at every point; empty is a line alone.
        hollow: circles are not filled.
    """

    label: str
    points: Sequence[Point]
    look: int = 0
    dash: int = 0
    band: Sequence[tuple[float, float, float]] = ()
    sizes: Sequence[float] = ()
    hollow: bool = False


class Row(NamedTuple):
    """One row of a dot chart: a value, its spread or None, single values, and a colour."""

    label: str
    value: float
    spread: float | None
    singles: Sequence[float]
    look: int


class Chart(NamedTuple):
    """One drawing under its title."""

    title: str
    svg: Markup


def lines(
    title: str, drawn: Sequence[Line], x: Axis, y: Axis, *, size: Point = (WIDTH, HEIGHT)
) -> Chart:
    """Lines over two axes, read aloud by where each begins and ends. Where `x` and `y` both reach
    from 0 to 1, the diagonal is drawn."""
    told = [_shown(line, False) for line in drawn if line.label]
    aloud = [f"{a.label} {a.points[0][1]:.3g} to {a.points[-1][1]:.3g}" for a in told if a.points]
    drawn = [_shown(line, y.log) for line in drawn]
    xs = [a for line in drawn for a, _ in line.points]
    ys = [b for line in drawn for _, b in line.points]
    ys += [v for line in drawn for part in line.band for v in part[1:]]
    across = span(x._replace(high=max(xs, default=1.0)) if x.high is None else x, xs)
    up = span(y, ys)
    yticks = ticks(*up)
    if y.log:
        up, yticks = _powers(ys)
    left = max(LEFT, round(24 + LETTER * max(len(text) for _, text in yticks)))
    frame = _Frame(f"{title}, {y.label}: {'; '.join(aloud)}", across, up, (left, *size))
    frame.axes(x, y.label, yticks)
    if (x.low, x.high, y.low, y.high) == (0, 1, 0, 1):
        frame.path([(0, 0), (1, 1)], "rule dashed")
    for line in drawn:
        there, back = [(a, c) for a, _, c in line.band], [(a, b) for a, b, _ in line.band]
        frame.path(there + back[::-1], f"band c{line.look}", "polygon")
    for line in drawn:
        frame.path(line.points, f"line c{line.look} d{line.dash % 4}")
        sizes = line.sizes or [3.5] * (len(line.points) == 1)
        for point, radius in zip(line.points, sizes, strict=False):
            frame.circle(*point, radius, f"{'hollow' if line.hollow else 'dot'} c{line.look}")
    return Chart(title, frame.markup())


def _shown(line: Line, log: bool) -> Line:
    """The line, with logarithms where the axis has them, and without what is not finite."""

    def height(y: float) -> float:
        return y if not log else math.log10(y) if y > 0 else math.nan

    points = [(x, height(y)) for x, y in line.points]
    kept = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    band = [(x, height(low), height(high)) for x, low, high in line.band]
    return line._replace(
        points=[points[i] for i in kept],
        sizes=[line.sizes[i] for i in kept] if line.sizes else (),
        band=[part for part in band if all(map(math.isfinite, part))],
    )


def dots(title: str, rows: Sequence[Row], x: Axis) -> Chart:
    """Rows of values with their spreads, and single values as small dots, from the top."""
    aloud = "; ".join(f"{row.label} {row.value:.3g}" for row in rows)
    most = min(21, max(len(row.label) for row in rows))
    left, room = most * LETTER + 12, 24
    ends = [v for r in rows for v in (r.value - (r.spread or 0), r.value + (r.spread or 0))]
    ends += [v for row in rows for v in row.singles]
    sizes = (left, WIDTH, TOP + BOTTOM + room * len(rows))
    frame = _Frame(f"{title}, {x.label}: {aloud}", span(x, ends), (len(rows), 0), sizes)
    frame.axes(x, "", ())
    for place, row in enumerate(rows):
        y, middle, colour = TOP + room * place, place + 0.5, f"c{row.look}"
        short = row.label if len(row.label) <= most else f"{row.label[: most - 1]}…"
        frame.text(left - 8, y + 16, short, "end")
        if row.spread:
            ends = [(row.value - row.spread, middle), (row.value + row.spread, middle)]
            frame.path(ends, f"line {colour}")
        for single in row.singles if len(row.singles) > 1 else ():
            frame.circle(single, middle, 2.2, f"single {colour}")
        frame.circle(row.value, middle, 4.5, f"dot {colour}")
        frame.add("line", "grid", x1=0, x2=WIDTH - RIGHT, y1=y + room, y2=y + room)
    return Chart(title, frame.markup())


class _Frame:
    """The drawing under way: pixels from values, and the elements.

    Args:
        title: read aloud in place of the drawing.
        x: range of the values from left to right.
        y: from bottom to top.
        sizes: room at the left, width and height of it all, in units.
    """

    def __init__(self, title: str, x: Point, y: Point, sizes: tuple[float, float, float]) -> None:
        self.title, self.ranges = title, (x, y)
        self.left, self.width, self.height = sizes
        self.right, self.bottom = self.width - RIGHT, self.height - BOTTOM
        self.parts: list[Markup] = []

    def place(self, x: float, y: float) -> Point:
        """Units from the left and from the top."""
        (x0, x1), (y0, y1) = self.ranges
        across = self.left + (x - x0) / (x1 - x0) * (self.right - self.left)
        return across, self.bottom - (y - y0) / (y1 - y0) * (self.bottom - TOP)

    def add(self, tag: str, css: str, text: str = "", **values: float | str) -> None:
        """One element; numbers are rounded to a tenth of a unit, texts escaped."""
        shown = {k: v if isinstance(v, str) else f"{v:.1f}" for k, v in values.items()}
        told = "".join(f' {k.replace("_", "-")}="{{{k}}}"' for k in shown)
        form = Markup(f'<{tag} class="{css}"{told}>{{text}}</{tag}>')  # noqa: S704 - our own names
        self.parts.append(form.format(text=text, **shown))

    def text(self, x: float, y: float, text: str, anchor: str = "middle", **more: str) -> None:
        """A word."""
        self.add("text", "", text, x=x, y=y, text_anchor=anchor, **more)

    def path(self, points: Sequence[Point], css: str, tag: str = "polyline") -> None:
        """A line through points, or an area within them."""
        if len(points) > 1:
            pairs = (self.place(*point) for point in points)
            self.add(tag, css, points=" ".join(f"{a:.1f},{b:.1f}" for a, b in pairs))

    def circle(self, x: float, y: float, size: float, css: str) -> None:
        """A point of the chart."""
        cx, cy = self.place(x, y)
        self.add("circle", css, cx=cx, cy=cy, r=size)

    def axes(self, x: Axis, label: str, yticks: Ticks) -> None:
        """Grid, numbers and labels."""
        end = -math.inf
        for value, text in x.ticks or ticks(*self.ranges[0]):
            (px, _), half = self.place(value, self.ranges[1][0]), len(text) * LETTER / 2
            self.add("line", "grid", x1=px, x2=px, y1=TOP, y2=self.bottom)
            px = min(px, self.width - half)  # the last number stays inside
            if px - half > end:  # and none runs into the one before
                self.text(px, self.bottom + 16, text)
                end = px + half + 4
        self.add("line", "rule", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom)
        self.text((self.left + self.right) / 2, self.height - 5, x.label)
        for value, text in yticks:
            _, py = self.place(self.ranges[0][0], value)
            self.add("line", "grid", x1=self.left, x2=self.right, y1=py, y2=py)
            self.text(self.left - 6, py + 4, text, "end")
        middle = (TOP + self.bottom) / 2
        self.text(12, middle, label, transform=f"rotate(-90 12 {middle:.1f})")

    def markup(self) -> Markup:
        """The drawing."""
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
        head = head.format(self.width, self.height, self.title)
        return Markup("").join((head, *self.parts, Markup("</svg>")))


def _powers(found: Sequence[float]) -> tuple[Point, Ticks]:
    """From one power of ten to another, so that all logarithms lie between: "0.1", "1e-05"."""
    low = math.floor(min(found, default=0))
    high = max(math.ceil(max(found, default=1)), low + 1)
    powers = range(low, high + 1, max(1, (high - low) // 6))
    return (low, high), [(float(k), f"{10.0**k:g}".replace("-", "−")) for k in powers]


def span(axis: Axis, found: Sequence[float]) -> Point:
    """The range of an axis: as given, else that of the values, widened to whole steps."""
    found = [v for v in found if math.isfinite(v)] or [0.0, 1.0]
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


def ticks(low: float, high: float) -> Ticks:
    """Round numbers of a range, with as many places as their step has."""
    step = _step(low, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    form = f",.{max(0, -math.floor(math.log10(step)))}f" if 1e-4 <= step < 1e6 else ".3g"
    return [(k * step, f"{k * step:{form}}".replace("-", "−")) for k in range(first, last + 1)]
