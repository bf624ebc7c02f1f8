"""Every chart of a page, from the numbers of its runs; svg.py draws."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev

from roli_fast.report.read import CONDITIONS, Run, Tree, at, values
from roli_fast.report.subjects import LOOKS, Key, Subject, steps
from roli_fast.report.svg import Axis, Chart, Line, Row, dots, lines
from roli_fast.report.text import change, percent, percent_over_seeds, radius_name, unit

FEW = 10
"""Images of a bin below which its point says little."""

PERCENT = Axis("accuracy in %", low=0, high=100)

EPOCHS = {
    "validation_robust_accuracy": ("Validation accuracy, attacked", 100.0, PERCENT),
    "validation_clean_accuracy": ("Validation accuracy, clean", 100.0, PERCENT),
    "train_loss": ("Training loss", 1.0, Axis("loss", low=0)),
    "train_eps": ("Radius of training", 1.0, Axis("eps, of several norms the first", low=0)),
    "train_alignment": ("PertAlign of single steps", 1.0, Axis("cosine of gradients", high=1)),
}
"""Drawn fields of metrics.jsonl: title, factor and axis."""

PRETRAINING = {
    Key("attacked", 0): "validation_robust_accuracy",
    Key("clean", 1, 1): "validation_clean_accuracy",
}
"""Series of pretraining -> field of metrics.jsonl."""

AS_TRAINED, SCALED = Key("as trained", 0, hollow=True), Key("after temperature", 1)
"""Series of a reliability diagram."""

Heights = Mapping[float, float]
"""x -> y of one seed."""


def over_seeds(key: Key, seeds: Sequence[Heights], *, marked: bool = True) -> Line:
    """The mean of all seeds where each has a value, within ± their deviation; `marked` with a
    circle at every point."""
    seeds = [heights for heights in seeds if heights]
    shared = sorted(set.intersection(*map(set, seeds))) if seeds else []
    columns = [(x, [heights[x] for heights in seeds]) for x in shared]
    points = [(x, mean(ys)) for x, ys in columns]
    band = [(x, mean(ys) - stdev(ys), mean(ys) + stdev(ys)) for x, ys in columns if len(ys) > 1]
    sizes = [3.0] * len(points) if marked else ()
    return Line(key.label, points, key.look, key.dash, band, sizes)


def accuracy(subjects: Sequence[Subject], columns: Sequence[str]) -> list[Chart]:
    """Test accuracy of every subject with its spread, a chart for clean images and each column."""
    charts = []
    for column in ("clean", *columns):
        rows = []
        for s in subjects:
            tests = (s.method.test, *(seed.test for seed in s.method.seeds))
            whole, *singles = (share(test, column) for test in tests)
            spread = spreads(s.method.test).get(column)
            if whole is not None:
                single = [100 * v for v in singles if v is not None]
                rows.append(Row(s.label, 100 * whole, spread and 100 * spread, single, s.look))
        title = "Clean accuracy" if column == "clean" else f"Robust accuracy, {column}"
        charts += [dots(title, rows, Axis("accuracy in %"))] if rows else []
    return charts


def over_cost(subjects: Sequence[Subject], columns: Sequence[str]) -> list[Chart]:
    """The same accuracies over the passes that the training took; none where a subject does not
    tell them."""
    passes = [s.passes for s in subjects]
    known = [p for p in passes if p]
    if len(known) < len(subjects):
        return []
    unit, word = (1e6, "million") if max(known) >= 1e6 else (1e3, "thousand")
    charts = []
    for column in ("clean", *columns):
        drawn = []
        for s, cost in zip(subjects, known, strict=True):
            tall, spread = share(s.method.test, column), spreads(s.method.test).get(column) or 0.0
            if tall is not None:
                x, y, sd = cost / unit, 100 * tall, 100 * spread
                drawn += [Line("", [(x, y - sd), (x, y + sd)], s.look)]
                drawn += [Line(s.label, [(x, y)], s.look, sizes=[4.5])]
        title = "Clean accuracy" if column == "clean" else f"Robust accuracy, {column}"
        x = Axis(f"{word} passes of one image", low=0, high=1.05 * max(known) / unit)
        charts += [lines(f"{title}, over the training's cost", drawn, x, Axis("accuracy in %"))]
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
    for name, (title, factor, y) in EPOCHS.items():
        drawn = [line for s in subjects for line in _over_epochs(s, name, factor)]
        if any(line.points for line in drawn):
            charts.append(lines(title, drawn, Axis("epoch", low=0), y))
    return charts


def _over_epochs(subject: Subject, name: str, factor: float) -> Iterator[Line]:
    """A line for every stage, with the mean of the seeds at the epochs whose weights were kept."""
    records, offset = subject.method.metrics, 0
    for stage in dict.fromkeys(record["stage"] for record in records):
        own = [r for r in records if r["stage"] == stage]
        seeds = _by_seed(own, name, factor, offset)
        key = Key(f"{subject.label}, {stage}", subject.look, subject.dash)
        yield (line := over_seeds(key, seeds, marked=False))
        kept = values(subject.method.stages.get(stage, ()), "best_epoch")
        ends = [point for point in line.points if point[0] - offset - 1 in kept]
        yield from (Line("", [point], subject.look) for point in ends)
        offset += 1 + max(r["epoch"] for r in own)


def _by_seed(records: Sequence[Tree], name: str, factor: float, offset: int = 0) -> list[Heights]:
    """Epoch -> value, of every seed."""
    found: dict[int, dict[float, float]] = {}
    for r in records:
        if values([r], name):
            found.setdefault(r["seed"], {})[offset + r["epoch"] + 1] = factor * r[name]
    return list(found.values())


def pretraining(run: Run) -> list[Chart]:
    """Validation accuracy of pretraining over its epochs."""
    own = [r for r in run.metrics if r["method"] == "source"]
    drawn = [
        over_seeds(key, _by_seed(own, name, 100.0), marked=False)
        for key, name in PRETRAINING.items()
    ]
    if not any(line.points for line in drawn):
        return []
    return [lines("Pretraining, validation accuracy", drawn, Axis("epoch", low=0), PERCENT)]


def curves(subject: Subject, norm: str = "") -> list[Tree]:
    """The curves of accuracy against the radius of every seed that has one, in a norm or in any."""
    found = [a["curve"] for a in subject.method.analyses if a.get("curve")]
    return [curve for curve in found if norm in ("", curve["norm"])]


def curves_told(subjects: Sequence[Subject]) -> str:
    """ "200 by pgd-10"."""
    told = [f"{c['images']} by {c['attack']}" for s in subjects for c in curves(s)]
    return ", ".join(dict.fromkeys(told))


def against_radius(subjects: Sequence[Subject]) -> dict[str, Chart]:
    """Norm -> accuracy as its radius grows."""
    charts = {}
    for norm in dict.fromkeys(c["norm"] for s in subjects for c in curves(s)):
        drawn = [_curve(s.key, own) for s in subjects if (own := curves(s, norm))]
        charts[norm] = _radius_chart(f"Accuracy under attack, {norm}", norm, drawn)
    return charts


def _radius_chart(title: str, norm: str, drawn: Sequence[Line]) -> Chart:
    return lines(title, drawn, Axis(f"{norm} {radius_name(norm)}", low=0), PERCENT)


def _curve(key: Key, found: Sequence[Tree]) -> Line:
    """The mean over seeds within ±, or of one seed within its interval."""
    points = radii(found)
    seeds = [{x: 100 * p[i]["accuracy"] for x, p in points.items()} for i in range(len(found))]
    line = over_seeds(key, seeds)
    if len(found) > 1:
        return line
    band = [(x, 100 * p["low"], 100 * p["high"]) for x, (p,) in points.items()]
    return line._replace(band=band)


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
    keys = [Key(_told(curve), look % LOOKS, look) for look, curve in enumerate(found)]
    if not found:
        return [], []
    drawn = [_curve(key, [curve]) for key, curve in zip(keys, found, strict=True)]
    norm = found[0]["norm"]
    return [_radius_chart(f"{name}/evaluation.json, {norm}", norm, drawn)], keys


def _told(curve: Tree) -> str:
    """ "pgd-10, expected 43.8 %"."""
    share = at(curve, "expected_robustness", "accuracy")
    return curve["attack"] + ("" if share is None else f", expected {percent(share)}")


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
    """From the first stage's start over the end of each."""
    drawn = []
    for s in subjects:
        seeds = []
        for stages in (a["stages"] for a in s.method.analyses):
            norms = values(stages[:1], "start", "head", "norm")
            norms += values(stages, "end", "head", "norm")
            seeds.append({float(place): norm for place, norm in enumerate(norms)})
        drawn.append(over_seeds(s.key, seeds))
    last = max((x for line in drawn for x, _ in line.points), default=1.0)
    marks = [(0.0, "start"), *((float(i), f"after stage {i}") for i in range(1, int(last) + 1))]
    x = Axis("", low=-0.3, high=last + 0.3, ticks=marks)
    return lines("Head norm ‖V‖", drawn, x, Axis("‖V‖", low=0))


def reliability(subjects: Sequence[Subject]) -> tuple[list[Chart], list[Key]]:
    """Accuracy against confidence, before and after a temperature, and the legend of both."""
    charts, keys = [], [AS_TRAINED]
    axes = Axis("confidence", low=0, high=1), Axis("accuracy", low=0, high=1)
    for subject in subjects:
        for condition, word in CONDITIONS.items():
            fits = [f for a in subject.method.analyses if (f := at(a, "calibration", condition))]
            found = [[fit[when] for fit in fits if fit.get(when)] for when in ("before", "after")]
            errors = [values(measures, "ece") for measures in found]
            told = percent_over_seeds(errors[0])
            if any(fit.get("fitted") for fit in fits):
                told, keys = change(errors[0], errors[1], percent_over_seeds), [AS_TRAINED, SCALED]
            else:
                found = found[:1]
            drawn = [_bins(key, m) for key, m in zip((AS_TRAINED, SCALED), found, strict=False)]
            if any(line.points for line in drawn):
                title = f"{subject.label}, {word}: ECE {told}"
                charts.append(lines(title, drawn, *axes, size=(300, 270)))
    return charts, keys


def _bins(key: Key, measures: Sequence[Tree]) -> Line:
    """A point for every bin that holds enough images of all seeds, larger for more of them."""
    counts, points = [], []
    for same in zip(*(m.get("bins") or () for m in measures), strict=False):
        weights = [b["count"] or 0 for b in same]
        if sum(weights) >= FEW:
            counts.append(sum(weights))
            columns = ([b[k] or 0 for b in same] for k in ("confidence", "accuracy"))
            x, y = (
                sum(value * weight for value, weight in zip(column, weights, strict=True))
                / sum(weights)
                for column in columns
            )
            points.append((x, y))
    sizes = [2 + 9 * math.sqrt(count / sum(counts)) for count in counts]
    return Line(key.label, points, key.look, sizes=sizes, hollow=key.hollow)


def spectrum(subjects: Sequence[Subject]) -> tuple[list[Chart], list[Key]]:
    """The largest eigenvalues of the tangent kernel of the first seed, and their legend."""
    drawn, keys = [], []
    for subject, name, own in steps(subjects):
        found = [stage["kernel"] for stage in own if stage.get("kernel")]
        eigenvalues = values(at(found, 0, "spectrum") or ())
        if heights := {float(place): value for place, value in enumerate(eigenvalues, 1)}:
            keys.append(Key(subject.staged(name), subject.look, len(drawn)))
            drawn.append(over_seeds(keys[-1], [heights]))
    axes = Axis("eigenvalue number", low=0), Axis("over the largest", log=True)
    return [lines("Spectrum", drawn, *axes)] if drawn else [], keys
