"""Lines over epochs, and accuracy against the radius of the attack."""

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev

from roli_fast.report.blocks import Block, Chart, Charts, Key, Missing, Section, Source
from roli_fast.report.read import Run, Tree, at
from roli_fast.report.subjects import Page, Subject
from roli_fast.report.svg import Axis, Line, Point, lines
from roli_fast.report.text import listed, method_name

FIELDS = {
    "validation_robust_accuracy": ("Validation accuracy, attacked", 100.0),
    "validation_clean_accuracy": ("Validation accuracy, clean", 100.0),
    "train_loss": ("Training loss", 1.0),
}
"""Drawn fields of metrics.jsonl: title and factor."""

GREY = 255.0
"""Grey levels of an image, in which linf radii are read."""


def training(page: Page) -> Section:
    """Validation accuracy and loss over the epochs of all stages, and of pretraining."""
    blocks: list[Block] = []
    charts = [chart for name in FIELDS if (chart := _over_epochs(page.subjects, name))]
    drawn = [s for s in page.subjects if s.method.metrics]
    if charts:
        several = any(len(s.method.seeds) > 1 for s in drawn)
        caption = (
            "Epochs count through all stages of a method; a line breaks where a stage ends. Dots: "
            "the epochs whose weights were kept."
        )
        if several:
            caption += " Strong lines are the mean over the seeds, faint ones the seeds."
        caption += " Losses of different objectives or of clean and attacked stages do not compare."
        blocks.append(Charts(charts, caption, [s.key for s in drawn], _metrics(page, drawn)))
    for run in page.runs:
        if chart := _pretraining(run):
            caption = "Robust pretraining on the source images, by its own validation."
            keys = [Key("attacked", 0), Key("clean", 1, 1)]
            blocks.append(Charts([chart], caption, keys, [page.source(run, "metrics.jsonl")]))
    if not blocks:
        folder = shlex.quote(str(page.runs[0].folder))
        what = "metrics.jsonl has no finished epoch yet."
        blocks.append(Missing(what, f"python -m roli_fast.train --run_dir {folder} --resume"))
    return Section("training", "Training", blocks)


def _metrics(page: Page, subjects: Sequence[Subject]) -> list[Source]:
    found = [
        page.source(s.run, s.method.folder.relative_to(s.run.folder) / "metrics.jsonl")
        for s in subjects
    ]
    return list(dict.fromkeys(found))


def _over_epochs(subjects: Sequence[Subject], name: str) -> Chart | None:
    title, factor = FIELDS[name]
    drawn = [line for s in subjects for line in _lines(s, name, factor)]
    if not any(line.points for line in drawn):
        return None
    percent = factor == 100
    y = Axis("accuracy in %" if percent else "loss", low=0, high=100 if percent else None)
    told = "; ".join(
        f"{line.label} ends at {line.points[-1][1]:.3g}"
        for line in drawn
        if not line.thin and line.points
    )
    svg = lines(
        f"{title} over epochs: {told}",
        drawn,
        Axis("epoch", low=0),
        y,
        show=lambda x, v: f"epoch {x:g}, {v:.3g}{' %' if percent else ''}",
    )
    return Chart(title, svg)


def _lines(subject: Subject, name: str, factor: float) -> Iterator[Line]:
    """Of every stage: each seed's line, with several seeds faint under their mean."""
    seeds = sorted({record["seed"] for record in subject.method.metrics})
    offset = 0
    for stage in dict.fromkeys(record["stage"] for record in subject.method.metrics):
        own = [r for r in subject.method.metrics if r["stage"] == stage]
        per_seed: dict[int, dict[float, float]] = {
            seed: {
                offset + r["epoch"] + 1: factor * r[name]
                for r in own
                if r["seed"] == seed and isinstance(r.get(name), (int, float))
            }
            for seed in seeds
        }
        for seed, values in per_seed.items():
            dots = list(_kept(subject, seed, stage, offset, values))
            label = (
                f"{subject.label}, {stage}, seed {seed}"
                if len(seeds) > 1
                else f"{subject.label}, {stage}"
            )
            look = dict(look=subject.look, dash=subject.dash)
            if len(values) == 1:  # a line of one point is not seen
                dots = dots or [(*next(iter(values.items())), label)]
            yield Line(label, sorted(values.items()), thin=len(seeds) > 1, dots=dots, **look)
        if len(seeds) > 1:
            yield Line(f"{subject.label}, {stage}, mean", _mean(list(per_seed.values())), **look)
        offset += 1 + max(r["epoch"] for r in own)


def _kept(
    subject: Subject, seed: int, stage: str, offset: int, values: Mapping[float, float]
) -> Iterator[tuple[float, float, str]]:
    """The epoch whose weights a stage handed on."""
    for found in subject.method.seeds:
        for result in found.stages:
            x = offset + (result.get("best_epoch", -1)) + 1
            if found.number == seed and result["name"] == stage and x in values:
                text = f"{subject.label}, {stage}, seed {seed}: epoch {x}, {values[x]:.3g}"
                yield x, values[x], text


def _mean(per_seed: Sequence[Mapping[float, float]]) -> list[Point]:
    """Where every seed that has any value has one."""
    per_seed = [values for values in per_seed if values]
    shared = set.intersection(*(set(values) for values in per_seed)) if per_seed else set()
    return [(x, mean(values[x] for values in per_seed)) for x in sorted(shared)]


def _pretraining(run: Run) -> Chart | None:
    own = [r for r in run.metrics if r["method"] == "source"]
    drawn = []
    for number, (name, label) in enumerate(
        (("validation_robust_accuracy", "attacked"), ("validation_clean_accuracy", "clean"))
    ):
        for seed in sorted({r["seed"] for r in own}):
            values = [
                (r["epoch"] + 1, 100 * r[name]) for r in own if r["seed"] == seed and name in r
            ]
            drawn.append(Line(f"{label}, seed {seed}", values, number, number))
    if not any(line.points for line in drawn):
        return None
    title = "Pretraining, validation accuracy"
    y = Axis("accuracy in %", low=0, high=100)
    return Chart(title, lines(f"{title} over epochs", drawn, Axis("epoch", low=0), y))


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
    several = any(len(_with_curve(s)) > 1 for s in subjects)
    band = "± the sample standard deviation over seeds" if several else "the 95 % Wilson interval"
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
        Axis(label, low=0, high=_last(drawn)),
        Axis("accuracy in %", low=0, high=100),
        show=lambda x, y: f"radius {x:.4g}{'/255' if norm == 'linf' else ''}, {y:.1f} %",
    )
    return Chart(f"Accuracy under attack, {norm}", svg)


def _last(drawn: Sequence[Line]) -> float:
    return max((x for line in drawn for x, _ in line.points), default=1.0)


def _curve_line(subject: Subject, norm: str, unit: float) -> Line | None:
    curves = [a["curve"] for a in _with_curve(subject) if a["curve"]["norm"] == norm]
    if not curves:
        return None
    at_radius: dict[float, list[Tree]] = defaultdict(list)
    for curve in curves:
        for point in curve["points"]:
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
                number // 8,
                [(unit * p["eps"], 100 * p["low"], 100 * p["high"]) for p in curve["points"]],
                marks=True,
            )
            for number, curve in enumerate(curves)
        ]
        label = "linf radius in 1/255" if norm == "linf" else f"{norm} radius"
        where = folder.relative_to(run.folder).as_posix()
        y = Axis("accuracy in %", low=0, high=100)
        chart = Chart(
            f"Evaluation {where}",
            lines(
                f"Accuracy against the {label}, evaluation {where}", drawn, Axis(label, low=0), y
            ),
        )
        caption = (
            f"{tree['images']} {at(tree, 'data', 'split') or 'test'} images, model "
            f"{at(tree, 'model', 'source')}; band: the 95 % Wilson interval."
        )
        keys = [Key(line.label, line.look, line.dash) for line in drawn]
        source = page.source(run, folder.relative_to(run.folder) / "evaluation.json")
        yield Charts([chart], caption, keys, [source])


def stage_label(subject: Subject, stage: str) -> str:
    """ "RoLI, probe"; a method of one stage that is called as itself says it once."""
    alone = len(subject.method.stage_names) == 1
    same = method_name(stage) == method_name(subject.method.name)
    return subject.label if alone and same else f"{subject.label}, {stage}"
