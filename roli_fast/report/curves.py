"""Lines over epochs, and accuracy against the radius of the attack."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from roli_fast.report.blocks import Block, Chart, Charts, Key, Missing, Section, Source
from roli_fast.report.read import Run
from roli_fast.report.subjects import Page, Subject
from roli_fast.report.svg import Axis, Line, Point, furthest, lines

FIELDS = {
    "validation_robust_accuracy": ("Validation accuracy, attacked", 100.0),
    "validation_clean_accuracy": ("Validation accuracy, clean", 100.0),
    "train_loss": ("Training loss", 1.0),
}
"""Drawn fields of metrics.jsonl: title and factor."""


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
        if _without_attack(drawn):
            caption += " Stages without an attack are validated on clean images alone."
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


def _without_attack(subjects: Sequence[Subject]) -> bool:
    """Whether some validated epoch was not attacked."""
    clean, robust = "validation_clean_accuracy", "validation_robust_accuracy"
    return any(clean in r and robust not in r for s in subjects for r in s.method.metrics)


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
        Axis("epoch", low=0, high=furthest(drawn)),
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
            label = f"{subject.label}, {stage}, seed {seed}"
            if len(values) == 1:  # a line of one point is not seen
                dots = dots or [(*next(iter(values.items())), label)]
            points, thin = sorted(values.items()), len(seeds) > 1
            yield Line(label, points, subject.look, subject.dash, thin=thin, dots=dots)
        if len(seeds) > 1:
            points = _mean(list(per_seed.values()))
            yield Line(f"{subject.label}, {stage}, mean", points, subject.look, subject.dash)
        offset += 1 + max(r["epoch"] for r in own)


def _kept(
    subject: Subject, seed: int, stage: str, offset: int, values: Mapping[float, float]
) -> Iterator[tuple[float, float, str]]:
    """The epoch whose weights a stage handed on."""
    for found in subject.method.seeds:
        for result in found.stages:
            best = result.get("best_epoch")
            x = offset + 1 + (-1 if best is None else best)
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
    return Chart(
        title, lines(f"{title} over epochs", drawn, Axis("epoch", low=0, high=furthest(drawn)), y)
    )
