"""Accuracy against the radius of the attack."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import mean, stdev

from roli_fast.report.blocks import Block, Chart, Charts, Key, Missing, Section
from roli_fast.report.read import Run, Tree, at, values
from roli_fast.report.subjects import Page, Subject
from roli_fast.report.svg import Axis, Line, furthest, lines
from roli_fast.report.text import listed

GREY = 255.0
"""Grey levels of an image, in which linf radii are read."""


def against_eps(page: Page) -> Section:
    """Accuracy as the radius grows: from the runs' analyses, and from evaluations beside them."""
    blocks: list[Block] = []
    subjects = [s for s in page.subjects if any(a.get("curve") for a in s.analyses)]
    if subjects:
        norms = dict.fromkeys(a["curve"]["norm"] for s in subjects for a in _with_curve(s))
        charts = [_curve_chart(subjects, norm) for norm in norms]
        sources = page.of_seeds(subjects, "analysis.json")
        blocks.append(Charts(charts, _caption(subjects), [s.key for s in subjects], sources))
    blocks += [chart for run in page.runs for chart in _evaluated(page, run)]
    if not blocks:
        what = "No curve of accuracy against the radius: analysis.json has none."
        blocks.append(Missing(what, f"python -m roli_fast.analyze {page.folders}"))
    return Section("radius", "Accuracy against the radius", blocks, "Radius")


def _with_curve(subject: Subject) -> list[Tree]:
    return [a for a in subject.analyses if a.get("curve")]


def _caption(subjects: Sequence[Subject]) -> str:
    curves = [a["curve"] for s in subjects for a in _with_curve(s)]
    attacks = listed(sorted({c["attack"] for c in curves}))
    images = sorted({c["images"] for c in curves})
    counted = str(images[0]) if len(images) == 1 else f"{images[0]} to {images[-1]}"
    seeds = {len(_with_curve(s)) for s in subjects}
    band = "the 95 % Wilson interval, for the accuracy on all test images under this attack"
    if seeds != {1}:
        band = "± the sample standard deviation over seeds" + (
            f"; with one seed {band}" if 1 in seeds else ""
        )
    return (
        f"{counted} test images attacked by {attacks} at each radius, so points may lie off the "
        f"table above, which counts all test images. Band: {band}. A point counts images that are "
        "right at its radius and at all smaller ones."
    )


def _curve_chart(subjects: Sequence[Subject], norm: str) -> Chart:
    unit = GREY if norm == "linf" else 1.0
    drawn = [line for s in subjects if (line := _curve_line(s, norm, unit))]
    label = "linf radius in 1/255" if norm == "linf" else f"{norm} radius"
    told = "; ".join(f"{x.label} {x.points[0][1]:.0f} % to {x.points[-1][1]:.0f} %" for x in drawn)
    svg = lines(
        f"Accuracy against the {label}: {told}",
        drawn,
        Axis(label, low=0, high=furthest(drawn)),
        Axis("accuracy in %", low=0, high=100),
        show=lambda x, y: f"radius {x:.4g}{'/255' if norm == 'linf' else ''}, {y:.1f} %",
    )
    return Chart(f"Accuracy under attack, {norm}", svg)


def _curve_line(subject: Subject, norm: str, unit: float) -> Line | None:
    curves = [a["curve"] for a in _with_curve(subject) if a["curve"]["norm"] == norm]
    if not curves:
        return None
    at_radius: dict[float, list[Tree]] = defaultdict(list)
    for curve in curves:
        for point in curve["points"]:
            if not all(values([point], key) for key in ("eps", "accuracy", "low", "high")):
                continue
            at_radius[unit * point["eps"]].append(point)
    points, band = [], []
    for x, found in sorted(at_radius.items()):
        if len(found) < len(curves):
            continue
        shares = [100 * p["accuracy"] for p in found]
        points.append((x, mean(shares)))
        low, high = 100 * found[0]["low"], 100 * found[0]["high"]
        if len(shares) > 1:
            low, high = mean(shares) - stdev(shares), mean(shares) + stdev(shares)
        band.append((x, max(0.0, low), min(100.0, high)))
    if not points:
        return None
    return Line(subject.label, points, subject.look, subject.dash, band, marks=True)


def _evaluated(page: Page, run: Run) -> Iterator[Charts]:
    """The curves of evaluations that lie in the run directory."""
    for folder, tree in run.evaluations.items():
        curves = tree.get("curves") or ()
        if not curves:
            continue
        norm = curves[0]["norm"]
        unit = GREY if norm == "linf" else 1.0
        drawn = [
            Line(
                curve["attack"],
                [(unit * p["eps"], 100 * p["accuracy"]) for p in curve["points"]],
                number,
                number,
                [(unit * p["eps"], 100 * p["low"], 100 * p["high"]) for p in curve["points"]],
                marks=True,
            )
            for number, curve in enumerate(curves)
        ]
        label = "linf radius in 1/255" if norm == "linf" else f"{norm} radius"
        where = folder.relative_to(run.folder).as_posix()
        y = Axis("accuracy in %", low=0, high=100)
        x = Axis(label, low=0, high=furthest(drawn))
        svg = lines(f"Accuracy against the {label}, evaluation {where}", drawn, x, y)
        chart = Chart(f"{where}/evaluation.json, {norm}", svg)
        caption = (
            f"{tree['images']} {at(tree, 'data', 'split') or 'test'} images, model "
            f"{at(tree, 'model', 'source')}; band: the 95 % Wilson interval."
        )
        keys = [Key(line.label, line.look, line.dash) for line in drawn]
        source = page.source(run, folder.relative_to(run.folder) / "evaluation.json")
        yield Charts([chart], caption, keys, [source])
