"""Drawings of head norms and of feature drift."""

from collections.abc import Sequence
from statistics import mean, stdev

from roli_fast.report.blocks import Chart
from roli_fast.report.read import values
from roli_fast.report.subjects import CONDITIONS, Subject, stage_label, steps
from roli_fast.report.svg import Axis, Line, Row, dots, furthest, lines
from roli_fast.report.text import number

STEEP = 20
"""Ratio of head norms from which on their axis is logarithmic."""


def head_charts(subjects: Sequence[Subject]) -> list[Chart]:
    """Head norms through the stages, and how far each stage moved the features."""
    found = [_norm_chart(subjects)]
    for condition, word in CONDITIONS.items():
        rows = []
        for subject, name, own in steps(subjects):
            moved = values(own, "change", condition, "relative")
            if not moved or max(moved) == 0:
                continue
            spread = stdev(moved) if len(moved) > 1 else None
            rows.append(
                Row(stage_label(subject, name), [(mean(moved), spread, moved, subject.look)])
            )
        if rows:
            title = f"Feature drift, {word} images"
            told = "; ".join(f"{r.label} {number(r.dots[0][0])}" for r in rows)
            svg = dots(
                f"{title}, relative: {told}", rows, Axis("relative to ‖φ before‖", low=0), number
            )
            found.append(Chart(title, svg))
    return found


def _norm_chart(subjects: Sequence[Subject]) -> Chart:
    drawn = [line for subject in subjects if (line := _norm_line(subject))]
    last = int(furthest(drawn))
    ticks = [(0.0, "start"), *((float(i), f"after stage {i}") for i in range(1, last + 1))]
    told = "; ".join(
        f"{x.label} {number(x.points[0][1])} to {number(x.points[-1][1])}" for x in drawn
    )
    every = [v for line in drawn for _, v in line.points if v > 0]
    log = bool(every) and max(every) > STEEP * min(every)
    svg = lines(
        f"Head norm through the stages: {told}",
        drawn,
        Axis("", low=-0.3, high=last + 0.3, ticks=ticks),
        Axis("‖V‖", low=0, log=log),
        show=lambda _, norm: number(norm),
    )
    return Chart("Head norm ‖V‖, logarithmic" if log else "Head norm ‖V‖", svg)


def _norm_line(subject: Subject) -> Line | None:
    """From the first stage's start over the end of each, the mean over seeds."""
    paths = []
    for stages in (a["stages"] for a in subject.analyses):
        start = values(stages[:1], "start", "head", "norm")
        norms = [*start, *values(stages, "end", "head", "norm")]
        if len(norms) == 1 + len(subject.method.stage_names):
            paths.append(norms)
    if not paths:
        return None
    columns = list(zip(*paths, strict=True))
    middle = [(float(i), mean(column)) for i, column in enumerate(columns)]
    band = [
        (x, y - stdev(c), y + stdev(c))
        for (x, y), c in zip(middle, columns, strict=True)
        if len(c) > 1
    ]
    return Line(subject.label, middle, subject.look, subject.dash, band, marks=True)
