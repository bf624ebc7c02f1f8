"""Every chart of a page, from the numbers of its runs; svg.py draws."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev

from roli_fast.report.read import CONDITIONS, Run, Tree, at, values
from roli_fast.report.subjects import LOOKS, Key, Subject, steps
from roli_fast.report.svg import Axis, Chart, Line, Point, Row, dots, lines
from roli_fast.report.text import change, percent_over_seeds, radius_name, unit

"""Grey levels of an image, in which linf radii are read."""

FEW = 10
"""Images of a bin below which its point says little."""

PERCENT = Axis("accuracy in %", low=0, high=100)

STEEP = 20
"""Ratio of head norms from which on their axis is logarithmic."""

EPOCHS = {
    "validation_robust_accuracy": ("Validation accuracy, attacked", 100.0),
    "validation_clean_accuracy": ("Validation accuracy, clean", 100.0),
    "train_loss": ("Training loss", 1.0),
}
"""Drawn fields of metrics.jsonl: title and factor."""

AS_TRAINED, SCALED = Key("as trained", 0, hollow=True), Key("after temperature", 1)
"""Series of a reliability diagram."""


def accuracy(subjects: Sequence[Subject], columns: Sequence[str]) -> list[Chart]:
    """Test accuracy of every subject with its spread, a chart for clean images and each column."""
    charts = []
    for column in ("clean", *columns):
        rows = []
        for s in subjects:
            if (value := share(s.method.test, column)) is None:
                continue
            spread = spreads(s.method.test).get(column)
            singles = [v for seed in s.method.seeds if (v := share(seed.test, column)) is not None]
            around = 100 * spread if spread else None
            rows.append(Row(s.label, 100 * value, around, [100 * v for v in singles], s.look))
        title = "Clean accuracy" if column == "clean" else f"Robust accuracy, {column}"
        if rows:
            charts.append(dots(title, rows, Axis("accuracy in %")))
    return charts


def share(test: Tree | None, column: str) -> float | None:
    """The accuracy of a test under an attack, or of "clean" images."""
    path = ("clean_accuracy",) if column == "clean" else ("robust_accuracy", column)
    return at(test, *path)


def spreads(test: Tree | None) -> Tree:
    """Column -> deviation over seeds, of one seed the standard error of the images."""
    return at(test, "sd") or at(test, "standard_error") or {}


def training(subjects: Sequence[Subject]) -> list[Chart]:
    """Accuracy and loss over the epochs of all stages, where there are records."""
    charts = []
    for name, (title, factor) in EPOCHS.items():
        drawn = [line for s in subjects for line in _over_epochs(s, name, factor)]
        y = PERCENT if factor > 1 else Axis("loss", low=0)
        if any(line.points for line in drawn):
            charts.append(lines(title, drawn, Axis("epoch", low=0), y))
    return charts


def _over_epochs(subject: Subject, name: str, factor: float) -> Iterator[Line]:
    """Of every stage: each seed's line, with several seeds faint under their mean, and the epochs
    whose weights were kept."""
    records, offset = subject.method.metrics, 0
    results = [(seed.number, stage) for seed in subject.method.seeds for stage in seed.stages]
    kept = {(n, t["name"]): t["best_epoch"] for n, t in results if t.get("best_epoch") is not None}
    seeds = sorted({record["seed"] for record in records})
    for stage in dict.fromkeys(record["stage"] for record in records):
        own = [r for r in records if r["stage"] == stage]
        found: dict[int, dict[float, float]] = {seed: {} for seed in seeds}
        for r in own:
            if isinstance(r.get(name), (int, float)):
                found[r["seed"]][offset + r["epoch"] + 1] = factor * r[name]
        label, look, dash = f"{subject.label}, {stage}", subject.look, subject.dash
        for seed, heights in found.items():
            points = sorted(heights.items())
            yield Line(f"{label}, seed {seed}", points, look, dash, thin=len(seeds) > 1)
            x = offset + 1 + kept.get((seed, stage), math.nan)
            if x in heights:
                yield Line("", [(x, heights[x])], look)
        if len(seeds) > 1:
            yield Line(f"{label}, mean", _mean(list(found.values())), look, dash)
        offset += 1 + max(r["epoch"] for r in own)


def _mean(found: Sequence[Mapping[float, float]]) -> list[Point]:
    """Where every seed that has any value has one."""
    found = [heights for heights in found if heights]
    shared = set.intersection(*map(set, found)) if found else set()
    return [(x, mean(heights[x] for heights in found)) for x in sorted(shared)]


PRETRAINING = {
    Key("attacked", 0): "validation_robust_accuracy",
    Key("clean", 1, 1): "validation_clean_accuracy",
}
"""Series of pretraining -> field of metrics.jsonl."""


def pretraining(run: Run) -> list[Chart]:
    """Validation accuracy of pretraining over its epochs."""
    own = [r for r in run.metrics if r["method"] == "source"]
    drawn = []
    for key, name in PRETRAINING.items():
        for seed in sorted({r["seed"] for r in own}):
            mine = [r for r in own if r["seed"] == seed and name in r]
            points = [(r["epoch"] + 1, 100 * r[name]) for r in mine]
            drawn.append(Line(f"{key.label}, seed {seed}", points, key.look, key.dash))
    if not any(line.points for line in drawn):
        return []
    return [lines("Pretraining, validation accuracy", drawn, Axis("epoch", low=0), PERCENT)]


def curves(subject: Subject) -> list[Tree]:
    """The curves of accuracy against the radius, of every seed that has one."""
    return [a["curve"] for a in subject.method.analyses if a.get("curve")]


def curves_told(subjects: Sequence[Subject]) -> str:
    """ "200 by pgd-10"."""
    told = [f"{c['images']} by {c['attack']}" for s in subjects for c in curves(s)]
    return ", ".join(dict.fromkeys(told))


def against_radius(subjects: Sequence[Subject]) -> dict[str, Chart]:
    """Norm -> accuracy as its radius grows."""
    charts = {}
    for norm in dict.fromkeys(c["norm"] for s in subjects for c in curves(s)):
        found = [(s, [c for c in curves(s) if c["norm"] == norm]) for s in subjects]
        drawn = [_curve(s.key, own) for s, own in found if own]
        drawn = [line for line in drawn if line.points]
        charts[norm] = _radius_chart(f"Accuracy under attack, {norm}", norm, drawn)
    return charts


def _radius_chart(title: str, norm: str, drawn: Sequence[Line]) -> Chart:
    return lines(title, drawn, Axis(f"{norm} {radius_name(norm)}", low=0), PERCENT)


def _curve(key: Key, found: Sequence[Tree]) -> Line:
    """The mean over seeds within ±, or of one seed within its interval."""
    points, band = [], []
    for x, same in radii(found).items():
        shares = [100 * p["accuracy"] for p in same]
        middle, low, high = mean(shares), 100 * same[0]["low"], 100 * same[0]["high"]
        if len(shares) > 1:
            low, high = middle - stdev(shares), middle + stdev(shares)
        points.append((x, middle))
        band.append((x, max(0.0, low), min(100.0, high)))
    return Line(key.label, points, key.look, key.dash, band, sizes=[3.0] * len(points))


def radii(found: Sequence[Tree]) -> dict[float, list[Tree]]:
    """Radius (of linf in grey levels) -> the point of every curve, where all have one."""
    same: dict[float, list[Tree]] = {}
    for curve in found:
        for point in curve["points"]:
            if all(values([point], key) for key in ("eps", "accuracy", "low", "high")):
                same.setdefault(unit(curve["norm"]) * point["eps"], []).append(point)
    return {x: points for x, points in sorted(same.items()) if len(points) == len(found)}


def evaluated(name: str, tree: Tree) -> tuple[list[Chart], list[Key]]:
    """The curves of an evaluation, an attack each, and their legend."""
    found = tree.get("curves") or ()
    keys = [Key(curve["attack"], look % LOOKS, look) for look, curve in enumerate(found)]
    if not found:
        return [], []
    drawn = [_curve(key, [curve]) for key, curve in zip(keys, found, strict=True)]
    norm = found[0]["norm"]
    return [_radius_chart(f"{name}/evaluation.json, {norm}", norm, drawn)], keys


def heads(subjects: Sequence[Subject]) -> list[Chart]:
    """Head norms through the stages, and how far each stage moved the features."""
    charts = [_norms(subjects)]
    for condition, word in CONDITIONS.items():
        rows = []
        for subject, name, own in steps(subjects):
            moved = values(own, "change", condition, "relative")
            if moved and max(moved) > 0:
                spread = stdev(moved) if len(moved) > 1 else None
                rows.append(Row(subject.staged(name), mean(moved), spread, moved, subject.look))
        if rows:
            x = Axis("relative to ‖φ before‖", low=0)
            charts.append(dots(f"Feature drift, {word} images", rows, x))
    return charts


def _norms(subjects: Sequence[Subject]) -> Chart:
    """From the first stage's start over the end of each, the mean over seeds."""
    drawn = []
    for s in subjects:
        paths = []
        for stages in (a["stages"] for a in s.method.analyses):
            norms = values(stages[:1], "start", "head", "norm")
            norms += values(stages, "end", "head", "norm")
            if len(norms) == 1 + len(s.method.stages):
                paths.append(norms)
        columns = list(enumerate(zip(*paths, strict=True)))
        points = [(float(x), mean(column)) for x, column in columns]
        around = [(x, c, stdev(c)) for x, c in columns if len(c) > 1]
        band = [(float(x), mean(c) - spread, mean(c) + spread) for x, c, spread in around]
        drawn.append(Line(s.label, points, s.look, s.dash, band, sizes=[3.0] * len(points)))
    drawn = [line for line in drawn if line.points]
    last = max((len(line.points) for line in drawn), default=2) - 1
    marks = [(0.0, "start"), *((float(i), f"after stage {i}") for i in range(1, last + 1))]
    every = [v for line in drawn for _, v in line.points if v > 0]
    log = bool(every) and max(every) > STEEP * min(every)
    x, y = Axis("", low=-0.3, high=last + 0.3, ticks=marks), Axis("‖V‖", low=0, log=log)
    title = "Head norm ‖V‖, logarithmic" if log else "Head norm ‖V‖"
    return lines(title, drawn, x, y)


def fits(subject: Subject, condition: str, when: str) -> list[Tree]:
    """Measures of calibration "before" or "after" a temperature, of every seed that has them."""
    trees = [at(a, "calibration", condition, when) for a in subject.method.analyses]
    return [tree for tree in trees if tree]


def reliability(subjects: Sequence[Subject]) -> tuple[list[Chart], list[Key]]:
    """Accuracy against confidence, before and after a temperature, and the legend of both."""
    charts, keys = [], [AS_TRAINED]
    axes = Axis("confidence", low=0, high=1), Axis("accuracy", low=0, high=1)
    for subject in subjects:
        for condition, word in CONDITIONS.items():
            found = [fits(subject, condition, when) for when in ("before", "after")]
            errors = [values(measures, "ece") for measures in found]
            told = percent_over_seeds(errors[0])
            if any(at(a, "calibration", condition, "fitted") for a in subject.method.analyses):
                told, keys = change(errors[0], errors[1], percent_over_seeds), [AS_TRAINED, SCALED]
            else:
                found = found[:1]
            if any(b["count"] for b in _pooled(found[0])):
                drawn = [_bins(key, m) for key, m in zip((AS_TRAINED, SCALED), found, strict=False)]
                title = f"{subject.label}, {word}: ECE {told}"
                charts.append(lines(title, drawn, *axes, size=(300, 270)))
    return charts, keys


def _bins(key: Key, measures: Sequence[Tree]) -> Line:
    """A point for every bin that holds enough images, larger for more of them."""
    bins = _pooled(measures)
    total, kept = sum(b["count"] for b in bins), [b for b in bins if b["count"] >= FEW]
    points = [(b["confidence"], b["accuracy"]) for b in kept]
    sizes = [2 + 9 * math.sqrt(b["count"] / total) for b in kept]
    return Line(key.label, points, key.look, sizes=sizes, hollow=key.hollow)


def _pooled(measures: Sequence[Tree]) -> list[Tree]:
    """The bins of all seeds together."""
    out = []
    for same in zip(*(m.get("bins") or () for m in measures), strict=False):
        count = sum(b["count"] or 0 for b in same)
        sums = {
            k: sum((b["count"] or 0) * (b[k] or 0) for b in same)
            for k in ("confidence", "accuracy")
        }
        out.append({"count": count} | {k: total / max(count, 1) for k, total in sums.items()})
    return out


def spectrum(subjects: Sequence[Subject]) -> tuple[list[Chart], list[Key]]:
    """The largest eigenvalues of the tangent kernel of the first seed, and their legend."""
    drawn = []
    for subject, name, own in steps(subjects):
        found = [stage["kernel"] for stage in own if stage.get("kernel")]
        points = list(enumerate(values(at(found, 0, "spectrum") or ()), 1))
        if points:
            sizes = [3.0] * len(points)
            drawn.append(Line(subject.staged(name), points, subject.look, len(drawn), sizes=sizes))
    if not drawn:
        return [], []
    axes = Axis("eigenvalue number", low=0), Axis("over the largest", log=True)
    return [lines("Spectrum", drawn, *axes)], [Key(x.label, x.look, x.dash) for x in drawn]
