"""Whether confidences can be believed, before and after a temperature."""

from collections.abc import Sequence
from math import sqrt

from roli_fast.report.blocks import Block, Chart, Charts, Fold, Key, Missing, Section, Table, Text
from roli_fast.report.read import Tree, at, values
from roli_fast.report.subjects import CONDITIONS, Page, Subject
from roli_fast.report.svg import Axis, Line, lines
from roli_fast.report.text import (
    NONE,
    change,
    listed,
    over_seeds,
    percent,
    percent_over_seeds,
)

FEW = 10
"""Images of a bin below which its point says little."""

SHOWN = 8
"""Diagrams that stand open; more are folded."""

TERMS = (
    (
        "T",
        "temperature: logits are divided by it, which changes confidences and no prediction; "
        "fitted on validation images, clean ones for clean and attacked ones for attacked",
    ),
    ("ECE", "expected calibration error: mean |accuracy − confidence| over 15 bins, by images"),
    ("MCE", "the largest such gap of a bin that holds at least 10 images"),
    ("ECE with T of clean images", "attacked images, with the temperature that clean ones gave"),
    ("NLL", "negative log likelihood of the true class, in nats"),
    ("Brier", "mean squared error of the probabilities, over images and classes"),
)


def calibrated(page: Page) -> Section:
    """Reliability diagrams and the table of errors."""
    subjects = [s for s in page.subjects if any(a.get("calibration") for a in s.analyses)]
    blocks: list[Block] = []
    if subjects:
        sources = page.of_seeds(subjects, "analysis.json")
        charts = [c for s in subjects for w in CONDITIONS if (c := _diagram(s, w))]
        several = any(len(_found(s, "clean", "before")) > 1 for s in subjects)
        caption = (
            "Points on the dashed line keep what they promise; below it the model is too sure. "
            "Larger points hold more of the images; bins of fewer than "
            f"{FEW} are not drawn."
        )
        caption += " The images of all seeds are pooled." if several else ""
        keys = [Key("as trained", 0, hollow=True), Key("after temperature", 1)]
        if not any(_fitted(s, c) for s in subjects for c in CONDITIONS):
            keys = keys[:1]
        drawn: Block = Charts(charts, caption, keys, sources, pairs=True)
        blocks.append(drawn if len(charts) <= SHOWN else Fold("Reliability diagrams", [drawn]))
        blocks += _tables(page, subjects)
        blocks += [Text(text) for text in _reasons(subjects)]
    else:
        what = "No calibration: no analysis.json of this run has it."
        blocks.append(Missing(what, f"python -m roli_fast.analyze {page.folders}"))
    return Section(
        "calibration", "Calibration: can its confidence be believed?", blocks, "Calibration"
    )


def _found(subject: Subject, condition: str, when: str) -> list[Tree]:
    trees = [at(a, "calibration", condition, when) for a in subject.analyses]
    return [tree for tree in trees if tree]


def _fitted(subject: Subject, condition: str) -> bool:
    """Whether some seed has a temperature of its own."""
    return any(at(a, "calibration", condition, "fitted") for a in subject.analyses)


def _tables(page: Page, subjects: Sequence[Subject]) -> list[Block]:
    rows, more = [], []
    for subject in subjects:
        for condition, word in CONDITIONS.items():
            fits = [f for a in subject.analyses if (f := at(a, "calibration", condition))]
            before, after = (_found(subject, condition, w) for w in ("before", "after"))
            if not fits:
                continue
            other = values(_found(subject, condition, "with_clean_temperature"), "ece")
            ece = [values(m, "ece") for m in (before, after)]
            rows.append(
                [
                    subject.label,
                    word,
                    _temperature(fits),
                    percent_over_seeds(ece[0]),
                    percent_over_seeds(ece[1]),
                    percent_over_seeds(other),
                    f"{_images(fits, 'validation_images')} / {_images(fits, 'test_images')}",
                    str(len(fits)),
                ]
            )
            cells = [
                change(values(before, k), values(after, k), one)
                for k, one in (
                    ("mce", percent_over_seeds),
                    ("nll", over_seeds),
                    ("brier", over_seeds),
                )
            ]
            more.append(
                [subject.label, word, percent_over_seeds(values(before, "accuracy")), *cells]
            )
    sources = page.of_seeds(subjects, "analysis.json")
    head = (
        "method",
        "images",
        "T",
        "ECE as trained",
        "ECE after T",
        "ECE with T of clean images",
        "validation / test images",
        "seeds",
    )
    spread = (
        "± is the sample standard deviation over seeds."
        if any(len(s.analyses) > 1 for s in subjects)
        else "One seed."
    )
    caption = f"Calibration on test images. {spread} ECE of few images is biased upwards."
    also = ("method", "images", "accuracy", "MCE", "NLL", "Brier")
    return [
        Table(caption, head, rows, sources, TERMS, words=(1,)),
        Fold(
            "MCE, NLL and Brier score, before → after",
            [Table(f"More measures. {spread}", also, more, sources, words=(1,))],
        ),
    ]


def _temperature(fits: Sequence[Tree]) -> str:
    if not any(fit.get("fitted") for fit in fits):
        return "not fitted"
    return over_seeds(values(fits, "temperature"))


def _images(fits: Sequence[Tree], name: str) -> str:
    found = sorted({int(v) for v in values(fits, name)})
    if not found:
        return NONE
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def _reasons(subjects: Sequence[Subject]) -> list[str]:
    """Why temperatures were not fitted, every reason once with whom it befell."""
    found: dict[str, dict[str, list[str]]] = {}
    for subject in subjects:
        for condition, word in CONDITIONS.items():
            for seed in subject.method.seeds:
                fit = at(seed.analysis, "calibration", condition)
                if fit and not fit.get("fitted"):
                    whom = found.setdefault(str(fit.get("reason")), {})
                    whom.setdefault(f"{subject.label} {word}", []).append(str(seed.number))
    return [
        "No temperature was fitted, so T = 1, for "
        + listed([f"{name} (seed {listed(numbers)})" for name, numbers in whom.items()])
        + f": {reason}."
        for reason, whom in found.items()
    ]


def _diagram(subject: Subject, condition: str) -> Chart | None:
    """Accuracy against confidence, before and after, with the share of images in each bin."""
    before, after = (_pooled(_found(subject, condition, w)) for w in ("before", "after"))
    total = sum(b["count"] for b in before)
    if not total:
        return None
    drawn = []
    fitted = _fitted(subject, condition)
    both = [("as trained", before), ("after temperature", after)]
    for look, (label, bins) in enumerate(both if fitted else both[:1]):
        kept = [b for b in bins if b["count"] >= FEW]
        points = [(b["confidence"], b["accuracy"]) for b in kept]
        sizes = [2 + 9 * sqrt(b["count"] / total) for b in kept]
        drawn.append(Line(label, points, look, sizes=sizes, hollow=look == 0))
    first, last = (values(_found(subject, condition, w), "ece") for w in ("before", "after"))
    told = change(first, last, percent_over_seeds) if fitted else percent_over_seeds(first)
    title = f"{subject.label}, {CONDITIONS[condition]}: ECE {told}"
    svg = lines(
        f"Reliability of {title}",
        drawn,
        Axis("confidence", low=0, high=1),
        Axis("accuracy", low=0, high=1),
        diagonal=True,
        show=lambda x, y: f"confidence {percent(x)}, accuracy {percent(y)}",
    )
    return Chart(title, svg)


def _pooled(measures: Sequence[Tree]) -> list[Tree]:
    """The bins of all seeds together."""
    out = []
    for same in zip(*(m.get("bins") or () for m in measures), strict=False):
        count = sum(b["count"] or 0 for b in same)
        pooled = {
            k: sum((b["count"] or 0) * (b[k] or 0) for b in same) / count if count else 0.0
            for k in ("confidence", "accuracy")
        }
        out.append({"count": count, **pooled})
    return out
