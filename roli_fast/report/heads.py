"""Why it works: the head's norm, the residual, and how far each stage moves the features."""

import shlex
from collections.abc import Iterator, Sequence
from statistics import mean

from roli_fast.report.blocks import Block, Charts, Fold, Missing, Section, Table, Text
from roli_fast.report.head_charts import head_charts
from roli_fast.report.read import Run, at, values
from roli_fast.report.strengths import strengths
from roli_fast.report.subjects import CONDITIONS, Page, Subject, stage_label, steps
from roli_fast.report.text import (
    NONE,
    change,
    given,
    listed,
    method_name,
    number,
    over_seeds,
    whole,
)

READING = (
    "To first order an update moves the features by rate × residual × head: at the same rate and "
    "residual a larger head moves them more, and the logits by more still. Smaller drift after a "
    "probe needs smaller residuals, fewer updates or a lower rate, so norm, rate, residual and "
    "drift are read together."
)

TERMS_HEAD = (
    ("head norm ‖V‖", "Frobenius norm of the last linear layer's weight, without the bias"),
    ("rows at the end", "smallest and largest norm of one class's row"),
    ("residual", "mean ‖one-hot − softmax‖₂ of training images: 0 right and sure, at most √2"),
    ("attacked", "images attacked at that very point of the training"),
)

TERMS_FEATURES = (
    ("absolute", "mean ‖φ after − φ before‖₂; relative: that over the mean ‖φ before‖₂"),
    ("cosine", "of each image's features before and after, the mean; 1 is the same direction"),
    (
        "CKA",
        "linear, centred: 1 is the same geometry up to rotation and scale; of fewer images than "
        "features it is high for any two (0.93 for noise, of 64 images and 768 features)",
    ),
    ("attacked", "images attacked when the stage began, held fixed, before and after"),
)

TERMS_SHAPE = (
    ("separation", "tr(S_B) / tr(S_W) of the features: spread between classes over that within"),
    ("cosine between images", "mean cosine of two images' features; 1: all point the same way"),
    ("robust drift", "mean ‖φ(x + δ) − φ(x)‖₂ over the mean ‖φ(x)‖₂: what the attack moves"),
)


def heads(page: Page) -> Section:
    """Head norm and feature drift of every stage, and what was analysed on demand."""
    subjects = [s for s in page.subjects if any(a.get("stages") for a in s.analyses)]
    blocks: list[Block] = []
    if subjects:
        sources = page.of_seeds(subjects, "analysis.json")
        blocks += [
            Text(READING),
            Charts(head_charts(subjects), _caption(subjects), [s.key for s in subjects], sources),
        ]
        blocks += [
            Table(
                f"Head and residual of each stage, start → end. {_within(subjects)}",
                _HEAD,
                list(_head_rows(subjects)),
                sources,
                TERMS_HEAD,
            ),
            Table(
                f"How far each stage moved the features of validation images. {_within(subjects)}",
                _FEATURES,
                list(_feature_rows(subjects)),
                sources,
                TERMS_FEATURES,
            ),
            Fold(
                "Shape of the features, start → end",
                [
                    Table(
                        f"Features of validation images. {_within(subjects)}",
                        _SHAPE,
                        list(_shape_rows(subjects)),
                        sources,
                        TERMS_SHAPE,
                    )
                ],
            ),
        ]
        notes = dict.fromkeys(n for s in subjects for a in s.analyses for n in a.get("notes") or ())
        blocks += [Text(f"Note of the analysis: {note}") for note in notes]
    blocks += strengths(page, page.subjects)
    blocks += [missing for run in page.runs if (missing := lacking(run))]
    return Section("head", "Head and features: why it works", blocks, "Head and features")


def lacking(run: Run) -> Missing | None:
    """The seeds without an analysis that can be read, and the command that makes them."""
    without = [
        f"{method_name(method.name)} seed {seed.number}"
        for method in run.methods
        for seed in method.seeds
        if not seed.analysis
    ]
    if not without:
        return None
    folder = shlex.quote(str(run.folder))
    what = f"{run.name}: no analysis.json of {listed(without)}."
    return Missing(what, f"python -m roli_fast.analyze {folder}")


_HEAD = (
    "stage",
    "epochs",
    "rate",
    "head norm ‖V‖",
    "rows at the end",
    "residual, clean",
    "residual, attacked",
)


def _head_rows(subjects: Sequence[Subject]) -> Iterator[list[str]]:
    for subject, name, own in steps(subjects):
        rows = [values(at(s, "end", "head", "rows") or ()) for s in own]
        lows, highs = [min(r) for r in rows if r], [max(r) for r in rows if r]
        between = f"{number(mean(lows))} to {number(mean(highs))}" if lows else NONE
        yield [
            stage_label(subject, name),
            whole(own[0].get("epochs")),
            given(own[0].get("lr")),
            change(
                values(own, "start", "head", "norm"), values(own, "end", "head", "norm"), over_seeds
            ),
            between,
            *(
                change(
                    values(own, "start", "residual", c),
                    values(own, "end", "residual", c),
                    over_seeds,
                )
                for c in CONDITIONS
            ),
        ]


_FEATURES = (
    "stage",
    "absolute, clean",
    "relative, clean",
    "relative, attacked",
    "cosine, clean",
    "cosine, attacked",
    "CKA, clean",
    "CKA, attacked",
)


def _feature_rows(subjects: Sequence[Subject]) -> Iterator[list[str]]:
    for subject, name, own in steps(subjects):
        cells = [over_seeds(values(own, "change", "clean", "absolute"))]
        for measure in ("relative", "cosine", "cka"):
            cells += [over_seeds(values(own, "change", c, measure)) for c in CONDITIONS]
        yield [stage_label(subject, name), *cells]


_SHAPE = (
    "stage",
    "separation, clean",
    "separation, attacked",
    "cosine between images, clean",
    "cosine between images, attacked",
    "robust drift, relative",
)


def _shape_rows(subjects: Sequence[Subject]) -> Iterator[list[str]]:
    paths = [(m, c) for m in ("separation", "pairwise_cosine") for c in CONDITIONS]
    for subject, name, own in steps(subjects):
        cells = [
            change(values(own, "start", *path), values(own, "end", *path), over_seeds)
            for path in (*paths, ("robust_drift", "relative"))
        ]
        yield [stage_label(subject, name), *cells]


def _within(subjects: Sequence[Subject]) -> str:
    seeds = sorted({len(s.analyses) for s in subjects})
    if seeds == [1]:
        return "One seed."
    return f"± is the sample standard deviation over {listed([str(n) for n in seeds])} seeds."


def _caption(subjects: Sequence[Subject]) -> str:
    images = [a["images"] for s in subjects for a in s.analyses if a.get("images")]
    seen = {k: sorted({i[k] for i in images if i.get(k)}) for k in ("train", "validation")}
    told = [
        f"{' or '.join(map(str, n))} {'training' if k == 'train' else k} images"
        for k, n in seen.items()
        if n
    ]
    attacks = sorted({str(at(a, "attack", "label")) for s in subjects for a in s.analyses})
    caption = f"Measured on {listed(told)}" if told else "Measured"
    caption += f", attacked by {listed(attacks)}"
    several = any(len(s.analyses) > 1 for s in subjects)
    caption += "; bars and bands are ± (as in the tables)." if several else "."
    return f"{caption} Stages that train the head alone move no features and are not drawn."
