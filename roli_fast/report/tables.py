"""Every table of a page: columns (heading, what a row says there) over rows.

What the headings mean stands in page/page.html.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean
from typing import Any, NamedTuple

from roli_fast.report import plots
from roli_fast.report.plots import share, spreads
from roli_fast.report.read import CONDITIONS, Run, Tree, at, fooled, values
from roli_fast.report.subjects import Page, Subject, steps
from roli_fast.report.text import (
    NONE,
    change,
    given,
    method_name,
    number,
    over_seeds,
    p_value,
    percent,
    percent_over_seeds,
    percent_within,
    points,
    radius,
    radius_name,
    whole,
)
from roli_fast.running.text import duration

MATRIX, NAMED = 12, 200
"""Classes of a confusion matrix, and fooled images whose names are listed."""

Says = Callable[[Any], str]
Columns = Mapping[str, Says]


@dataclass(frozen=True)
class Table:
    """Headings, the rows' one first, and rows of as many texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns are of numbers, that stand to the right."""
        cells = [[row[i] for row in self.rows] for i in range(len(self.columns))]
        return [i > 0 and all(map(_is_number, column)) for i, column in enumerate(cells)]


def _is_number(cell: str) -> bool:
    return cell[:1] in "0123456789−+–×" or cell.startswith(("p ", "not fitted"))


class Of(NamedTuple):
    """What a row is about: its name, the same thing of every seed, which part, and a remark."""

    label: str
    trees: Sequence[Tree]
    part: str = ""
    told: str = ""


def table(rows: Iterable[Mapping[str, str]]) -> Table:
    """Rows as heading -> text; a column of which nothing is known is left out."""
    found = list(rows)
    names = [name for name in (found or [{}])[0] if {row[name] for row in found} - {NONE}]
    return Table(names, [[row[name] for name in names] for row in found])


def told(columns: Columns, rows: Sequence[Any]) -> Table:
    """What every column says of every row."""
    return table({name: says(row) for name, says in columns.items()} for row in rows)


def over(*path: str | int, one: Callable[[Sequence[float]], str] = over_seeds) -> Says:
    """The mean over seeds of what is at `path`, ± its deviation."""
    return lambda row: one(values(row.trees, *path))


def share_over(*path: str | int) -> Says:
    """The same of shares, in percent."""
    return over(*path, one=percent_over_seeds)


def first(*path: str | int, one: Callable[[Any], str]) -> Says:
    """What the first seed says, where all say the same."""
    return lambda row: one(at(row.trees, 0, *path))


def moved(*path: str, ends: tuple[str, str] = ("start", "end"), one: Says = over_seeds) -> Says:
    """From one value to another."""
    first, last = ends
    return lambda row: change(values(row.trees, first, *path), values(row.trees, last, *path), one)


LABEL: Says = lambda row: row.label  # noqa: E731
PART: Says = lambda row: row.part  # noqa: E731
SEEDS: Says = lambda row: str(len(row.trees))  # noqa: E731


def columns(subjects: Sequence[Subject]) -> list[str]:
    """The columns of robust accuracy: the attack's label, or each norm and their union."""
    tests = [test for s in subjects for test in (s.method.test, *(x.test for x in s.method.seeds))]
    return list(dict.fromkeys(c for test in tests for c in at(test, "robust_accuracy") or ()))


def _shares(page: Page, one: Callable[[str], str]) -> dict[str, str]:
    """Heading -> text of clean images and of each attack."""
    return {_column(column): one(column) for column in ("clean", *columns(page.subjects))}


def _column(name: str) -> str:
    return name if name == "clean" else f"robust, {name}"


def accuracy(page: Page) -> Table:
    """The table that methods are compared by: test accuracy, what else was measured of robustness,
    and what it cost."""
    rows, evaluated = [], list(dict.fromkeys(name for s in page.tested for name in s.evaluated))
    for s in page.tested:
        test, spread, seeds = s.method.test, spreads(s.method.test), s.method.seeds
        stages = [f"{stage['name']} {stage['epochs']}" for stage in seeds[0].stages]
        times = [sum(stage["train_seconds"] for stage in seed.stages) for seed in seeds]
        rows.append(
            {"method": s.label}
            | _shares(page, lambda c, t=test, sd=spread: percent_within(share(t, c), sd.get(c)))
            | {"expected robustness": percent_over_seeds(_expected(s.method.analyses))}
            | {name: percent_over_seeds(s.evaluated.get(name, ())) for name in evaluated}
            | {"seeds": str(len(seeds)), "stages and epochs": " + ".join(stages)}
            | {"training passes": whole(s.passes), "training time": duration(mean(times))}
        )
    return table(rows)


def _expected(analyses: Sequence[Tree]) -> list[float]:
    """The expected robustness of every seed that has a curve."""
    return values(analyses, "curve", "expected_robustness", "accuracy")


def comparisons(page: Page) -> Table:
    """The paired tests of every run."""
    return table(
        {
            "methods": (f"{name}: " if page.several else "")
            + " − ".join(map(method_name, entry["methods"])),
            "attack": entry["attack"],
            "difference": points(entry["difference"]),
            "p": p_value(entry["p_value"]),
            "test": entry["test"],
        }
        for name, run in zip(page.names, page.runs, strict=True)
        for entry in run.summary.get("comparisons") or ()
    )


def per_seed(page: Page) -> Table:
    """What every seed has, also of an unfinished run."""
    return table(
        {
            "method": s.label,
            "seed": str(seed.number),
            "last stage": str(at(seed.stages, -1, "name") or NONE),
            "validation": percent(at(seed.stages, -1, "best_validation_accuracy")),
            **_shares(page, lambda c, test=seed.test: percent(share(test, c))),
        }
        for s in page.subjects
        for seed in s.method.seeds
    )


def sweep(run: Run) -> Table:
    """The cells of a sweep, and which were chosen."""
    return table(
        {
            "cell": str(cell["cell"]),
            "method": method_name(cell["method"]),
            "validation": percent_within(cell["validation_accuracy"], cell["sd"]),
            "outcome": "chosen" if cell["chosen"] else "diverged" if cell["diverged"] else "",
        }
        for cell in at(run.summary, "sweep", "cells") or ()
    )


def curve(page: Page, norm: str) -> Table:
    """Accuracy at every radius of a norm, a column a subject."""
    shown = {s.label: plots.radii(own) for s in page.subjects if (own := plots.curves(s, norm))}
    return table(
        {radius_name(norm): f"{x:.4g}"}
        | {
            name: percent_over_seeds(values(own.get(x, ()), "accuracy"))
            for name, own in shown.items()
        }
        for x in sorted({x for own in shown.values() for x in own})
    )


def _interval(entry: Tree | None) -> str:
    if not entry:
        return NONE
    low, high = entry["interval_95"]
    return f"{percent(entry['accuracy'])} [{100 * low:.1f}, {100 * high:.1f}]"


def evaluated(tree: Tree) -> str:
    """The model of an evaluation."""
    return str(at(tree, "model", "source") or at(tree, "model", "file"))


def evaluations(run: Run) -> Table:
    """What each evaluation of a run found: a row for every norm, and one for their union."""
    rows = []
    for name, tree in run.evaluations.items():
        norms = [(radius(n, e.get("eps")), e.get("robust")) for n, e in tree["norms"].items()]
        norms += [("union", tree.get("union"))] * (len(norms) > 1)
        rows += [
            {
                "evaluation": name,
                "model": "/".join(evaluated(tree).split("/")[-3:]),
                "attacks": " + ".join(str(a.get("name")) for a in tree.get("attacks") or ()),
                "threat": threat,
                "images": whole(tree["images"]),
                "clean": _interval(tree["clean"]),
                "robust": _interval(robust),
            }
            for threat, robust in norms
        ]
    return table(rows)


def searches(tree: Tree) -> Table:
    """Every attack of an evaluation, and what it found of the images that were left to it."""
    return table(
        {
            "attack": str(one["part"]),
            "norm": norm,
            "images left": whole(one["attacked"]),
            "fooled": whole(one["fooled"]),
        }
        for norm, entry in tree["norms"].items()
        for one in entry.get("searches") or ()
    )


TOGETHER = {
    "union": "all of these",
    "union_with_norms": "these and the attacks above",
    "union_with_corruptions": "these, the attacks above and every corruption",
}


def unseen(tree: Tree) -> Table:
    """Attacks that the model was not trained against, each on its own, and together."""
    found = tree.get("unseen") or {}
    alone = found.get("attacks") or ()
    rows = [(f"{e['attack']}, {radius(e['norm'], e['eps'])}", e["robust"]) for e in alone]
    rows += [(text, found[name]) for name, text in TOGETHER.items() if found.get(name)]
    return table({"right under": name, "accuracy": _interval(entry)} for name, entry in rows)


def expected_robustness(page: Page, norm: str) -> Table:
    """The mean accuracy over all radii from 0 to the attack's, a row a subject."""
    found = [
        (s, [c for a in s.method.analyses if (c := a.get("curve")) and c["norm"] == norm])
        for s in page.subjects
    ]
    return table(
        {
            "method": s.label,
            "up to": radius(norm, at(own, 0, "expected_robustness", "eps")),
            "expected robustness": percent_over_seeds(shares),
        }
        for s, own in found
        if (shares := values(own, "expected_robustness", "accuracy"))
    )


def corruptions(tree: Tree) -> Table:
    """Accuracy on corrupted images by kind and severity, and on a second data set."""
    found = dict(at(tree, "shifts", "corruptions") or {})
    severities = sorted({severity for levels in found.values() for severity in levels})
    if other := at(tree, "shifts", "ood"):
        found["the second data set"] = {"": other}
    return table(
        {"images": kind}
        | {f"severity {s}": percent(at(levels, s, "accuracy")) for s in severities}
        | {"mean": percent(mean(values(list(levels.values()), "accuracy")))}
        for kind, levels in found.items()
    )


def named(tree: Tree) -> Callable[[int], str]:
    """Output of an evaluated model -> the class that it stands for."""
    data = tree.get("data") or {}
    outputs, classes = (data.get(key) or () for key in ("outputs", "classes"))
    names: dict[int, str] = dict(zip(outputs, classes, strict=False))
    return lambda output: names.get(output, f"output {output}")


def classes(page: Page) -> Table:
    """Test accuracy of every class and method, on clean images and under all attacks together, in
    the order of the first method: worst first."""
    tested = {s.label: at(s.method.test, "per_class") or () for s in page.tested}
    shares = {name: {e["class"]: e["accuracy"] for e in own} for name, own in tested.items()}
    rows = []
    for entry in next(iter(tested.values()), ()):
        measured = [*entry["accuracy"]]
        ends = zip(("clean", "robust"), dict.fromkeys((measured[0], measured[-1])), strict=False)
        rows.append(
            {"class": str(entry["class"]), "images": whole(entry["images"])}
            | {
                f"{label}, {word}": percent(at(own, entry["class"], column))
                for (label, own), (word, column) in product(shares.items(), ends)
            }
        )
    return table(rows)


def evaluated_classes(tree: Tree) -> Table:
    """Accuracy of every class in an evaluation, worst first."""
    return table(
        {"class": str(entry["class"]), "images": whole(entry["images"])}
        | {_column(name): percent(share) for name, share in entry["accuracy"].items()}
        | {"attacked, taken most often for": _mistaken(entry)}
        for entry in tree.get("per_class") or ()
    )


def _mistaken(entry: Tree) -> str:
    others = [(n, k) for n, k in entry["attacked_as"].items() if n != entry["class"]]
    return f"{others[0][0]} ({others[0][1]})" if others else NONE


class Cell(NamedTuple):
    """A count, its share of the row, and whether these answers are right."""

    images: int
    share: float
    right: bool


def confusion(tree: Tree) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """What attacked images are taken for: the columns' names, and a row for each of the worst
    classes; where there are other answers, they stand together in the last column."""
    entries = (tree.get("per_class") or ())[:MATRIX]
    names, rows = [str(entry["class"]) for entry in entries], []
    for entry in entries:
        counts = [entry["attacked_as"].get(name, 0) for name in names]
        counts.append(entry["images"] - sum(counts))
        answers = zip(counts, [*names, ""], strict=True)
        cells = [Cell(n, n / entry["images"], name == entry["class"]) for n, name in answers]
        rows.append((str(entry["class"]), cells))
    if any(cells[-1].images for _, cells in rows):
        return [*names, "other"], rows
    return names, [(name, cells[:-1]) for name, cells in rows]


def fooled_images(tree: Tree) -> Table:
    """The images that the attacks of an evaluation fooled, by name."""
    classes = named(tree)
    return table(
        {"image": name, "class": classes(label), "taken for": classes(answer), "norm": norm}
        for name, label, answer, norm in fooled(tree)[:NAMED]
    )


def _rows_of_classes(row: Of) -> str:
    """Between which norms the rows of the head lie, means over seeds."""
    ends = [values(at(stage, "end", "head", "rows") or ()) for stage in row.trees]
    lows, highs = [min(rows) for rows in ends if rows], [max(rows) for rows in ends if rows]
    return f"{number(mean(lows))} to {number(mean(highs))}" if lows else NONE


HEAD: Columns = {
    "stage": LABEL,
    "epochs": first("epochs", one=whole),
    "rate": first("lr", one=given),
    "head norm ‖V‖": moved("head", "norm"),
    "rows at the end": _rows_of_classes,
    "residual, clean": moved("residual", "clean"),
    "residual, attacked": moved("residual", "adversarial"),
}

FEATURES: Columns = {
    "stage": LABEL,
    "absolute, clean": over("change", "clean", "absolute"),
    "relative, clean": over("change", "clean", "relative"),
    "relative, attacked": over("change", "adversarial", "relative"),
    "cosine, clean": over("change", "clean", "cosine"),
    "cosine, attacked": over("change", "adversarial", "cosine"),
    "CKA, clean": over("change", "clean", "cka"),
    "CKA, attacked": over("change", "adversarial", "cka"),
}

SHAPE: Columns = {
    "stage": LABEL,
    "separation, clean": moved("separation", "clean"),
    "separation, attacked": moved("separation", "adversarial"),
    "cosine between images, clean": moved("pairwise_cosine", "clean"),
    "cosine between images, attacked": moved("pairwise_cosine", "adversarial"),
    "robust drift, relative": moved("robust_drift", "relative"),
}


def stages(page: Page) -> list[Of]:
    """Every stage as analysed."""
    return [Of(s.staged(name), own) for s, name, own in steps(page.subjects)]


Paths = Iterable[tuple[str, Sequence[str | int]]]


def parts(rows: Iterable[Of], paths: Paths) -> list[Of]:
    """Of every row what lies at each of the named paths, where a seed has it."""
    return [
        Of(row.label, found, name or row.part)
        for row, (name, path) in product(rows, list(paths))
        if (found := [part for tree in row.trees if (part := at(tree, *path))])
    ]


STRENGTHS: Columns = {
    "stage": LABEL,
    "L2 strength": PART,
    "head norm ‖V‖": over("head_norm"),
    "validation": share_over("validation_accuracy"),
    "validation NLL": over("validation_nll"),
    "training loss": over("train_loss"),
    "chosen": lambda row: row.told,
}


def strengths(page: Page) -> list[Of]:
    """Every strength that a clean probe solved by L-BFGS tried."""
    rows = []
    every = [(s.staged(name), own) for s in page.subjects for name, own in s.method.stages.items()]
    for name, own in every:
        tried = [row for stage in own for row in stage.get("strengths") or ()]
        grid = sorted({row["strength"] for row in tried})
        for strength in grid:
            same = [row for row in tried if row["strength"] == strength]
            chosen = sum(stage.get("strength") == strength for stage in own)
            end = chosen and len(grid) > 1 and strength in (grid[0], grid[-1])
            told = f"{chosen}, an end of the grid" if end else str(chosen)
            rows.append(Of(name, same, given(strength), told))
    return rows


ONE_STEP: Columns = {
    "stage": LABEL,
    "images": PART,
    "FT ratio": over("ft_ratio"),
    "rate": first("lr", one=given),
    "predicted": over("predicted"),
    "actual": over("actual"),
    "relative error": share_over("relative_error"),
    "seeds": SEEDS,
}

FIRST_UPDATE: Columns = {"stage": LABEL, "optimiser": first("optimizer", one=str)} | ONE_STEP

SCALE: Columns = {
    "stage": LABEL,
    "head": first("scale", one=lambda scale: f"× {given(scale)}"),
    "residual": over("residual"),
    "features": over("features"),
    "logits through F": over("logits_F"),
    "FT ratio": over("ft_ratio"),
}

KERNEL: Columns = {
    "stage": LABEL,
    "images × classes": lambda row: " × ".join(
        str(at(row.trees, 0, name)) for name in ("images", "classes")
    ),
    "P rank": first("P", "rank", one=whole),
    "P norm": over("P", "frobenius"),
    "F rank": first("F", "rank", one=whole),
    "F norm": over("F", "frobenius"),
    "NTK rank": first("NTK", "rank", one=whole),
    "NTK norm": over("NTK", "frobenius"),
    "accuracy, training": share_over("regression", "train"),
    "accuracy, validation": share_over("regression", "test"),
    "trivial": share_over("regression", "trivial"),
}


def one_step(page: Page) -> list[Of]:
    """One plain gradient step of each stage, on clean and on attacked images."""
    return parts(stages(page), [(word, ("one_step", c)) for c, word in CONDITIONS.items()])


def first_update(page: Page) -> list[Of]:
    """The same for a step of the stage's own optimiser."""
    return parts(one_step(page), [("", ("first_update",))])


def head_scale(page: Page) -> list[Of]:
    """The same plain step from a head that is scaled."""
    return parts(stages(page), [("", ("head_scale", place)) for place in range(9)])


def kernels(page: Page) -> list[Of]:
    """The tangent kernel where each stage began."""
    return parts(stages(page), [("", ("kernel",))])


def _images(row: Of) -> str:
    """ "120 / 200", of the first seed."""
    counts = [at(row.trees, 0, f"{name}_images") for name in ("validation", "test")]
    return " / ".join(map(whole, counts))


def _temperature(row: Of) -> str:
    fitted = any(fit.get("fitted") for fit in row.trees)
    return over_seeds(values(row.trees, "temperature")) if fitted else "not fitted"


CALIBRATION: Columns = {
    "method": LABEL,
    "images": PART,
    "T": _temperature,
    "ECE as trained": share_over("before", "ece"),
    "ECE after T": share_over("after", "ece"),
    "ECE with T of clean images": share_over("with_clean_temperature", "ece"),
    "validation / test images": _images,
    "seeds": SEEDS,
}

MEASURES: Columns = {
    "method": LABEL,
    "images": PART,
    "accuracy": share_over("before", "accuracy"),
    "MCE": moved("mce", ends=("before", "after"), one=percent_over_seeds),
    "NLL": moved("nll", ends=("before", "after")),
    "Brier": moved("brier", ends=("before", "after")),
}


def fits(page: Page) -> list[Of]:
    """The calibration of every method, on clean and on attacked images."""
    paths = [(word, ("calibration", condition)) for condition, word in CONDITIONS.items()]
    return parts([Of(s.label, s.method.analyses) for s in page.subjects], paths)


COSTS: Columns = {
    "method": LABEL,
    "stage": PART,
    "epochs": first("epochs", one=whole),
    "trained parameters": first("trainable_parameters", one=whole),
    "best validation": share_over("best_validation_accuracy"),
    "passes": over("passes", one=lambda found: whole(mean(found)) if found else NONE),
    "alignment": over("alignment"),
    "images/s": over("train_images_per_second"),
    "time": over("train_seconds", one=lambda t: duration(mean(t)) if t else NONE),
    "waited for data": share_over("data_wait_share"),
    "L2 strength": over("strength"),
}


def trained(page: Page) -> list[Of]:
    """Every stage as trained, those of pretraining first."""
    rows = []
    for run in page.runs:
        if found := run.summary.get("pretrain"):
            name = f"pretraining of {run.name}" if page.several else "pretraining"
            rows.append(Of(name, [found], found["name"]))
    for s in page.subjects:
        rows += [Of(s.label, own, name) for name, own in s.method.stages.items()]
    return rows
