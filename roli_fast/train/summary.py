"""summary.json, and the tables that a run ends with."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from roli_fast.data import Splits
from roli_fast.evaluate import UNION, columns, standard_error
from roli_fast.evaluate.shares import by_class, collapse, majority, to_flags
from roli_fast.report.read import values
from roli_fast.running.text import align
from roli_fast.train.analysis import FILE, read_analysis
from roli_fast.train.experiment import SCHEMA, Experiment

Outcome = dict[str, Any]


def summarise(
    experiment: Experiment,
    splits: Splits,
    outcomes: dict[str, list[Outcome]],
    pretrained: list[Outcome],
) -> dict[str, Any]:
    """What summary.json holds.

    `pretrain` is the stage on the source images, null without one. Per method: the stages (times
    averaged over seeds), the test (mean over seeds), and every seed. Accuracies are fractions.
    `standard_error` is binomial, for one seed's test images; `sd` is the sample standard deviation
    over seeds, present with two or more. `per_class` of a test has every class, worst first, means
    over seeds; `guessing` is the share of the most frequent test label, and `warnings` name models
    that are not better, and stages in which single steps lost their hold. `passes` of a stage are
    forwards of one image, as planned, with its validations.

    Under a threat of several norms `robust_accuracy` has one entry for each and their union, by
    which methods are compared; `attack` leaves norm and radius to `threat`, which is there then.
    """
    tested = columns(experiment.test, experiment.threat)
    first = next(iter(tested.values()))
    label, several = first.label, len(tested) > 1
    measure = UNION if several else label
    labels, names = splits.test.labels, dict(enumerate(splits.classes))
    return {
        "classes": list(splits.classes),
        "test_images": len(splits.test),
        "guessing": majority(labels),
        "seeds": list(experiment.seeds),
        "attack": SCHEMA.to_tree(experiment.test if several else first),
        **({"attack_label": label, "threat": SCHEMA.to_tree(experiment.threat)} if several else {}),
        "note": experiment.note,
        "paper_compat": list(experiment.paper_compat),
        "pretrain": _stage(pretrained) if pretrained else None,
        "methods": {method: _method(runs, labels, names) for method, runs in outcomes.items()},
        "warnings": [
            f"{method}, seed {run['seed']}: {told}"
            for method, runs in outcomes.items()
            for run in runs
            if (told := collapse(to_flags(run["test"]["clean_flags"]), labels, names))
        ]
        + [
            f"{method}/{stage['name']}, seed {run['seed']}, {alarm}"
            for method, runs in outcomes.items()
            for run in runs
            for stage in run["stages"]
            for alarm in stage.get("alarms", ())
        ],
        "comparisons": [
            _compare(first, outcomes[first], second, outcomes[second], measure)
            for first, second in combinations(outcomes, 2)
        ],
    }


def _method(runs: list[Outcome], labels: Tensor, names: dict[int, str]) -> dict[str, Any]:
    kept = ("images", "clean_accuracy", "robust_accuracy")
    tests = [{name: run["test"][name] for name in kept} for run in runs]
    columns = {"clean": [test["clean_accuracy"] for test in tests]}
    flags = {"clean": [to_flags(run["test"]["clean_flags"]) for run in runs]}
    for label in tests[0]["robust_accuracy"]:
        columns[label] = [test["robust_accuracy"][label] for test in tests]
        flags[label] = [to_flags(run["test"]["robust_flags"][label]) for run in runs]
    means = {name: _mean(found) for name, found in columns.items()}
    images = tests[0]["images"]
    test = {
        "images": images,
        "clean_accuracy": means["clean"],
        "robust_accuracy": {name: mean for name, mean in means.items() if name != "clean"},
        "standard_error": {name: standard_error(mean, images) for name, mean in means.items()},
        "per_class": by_class(names, labels, flags),
    }
    if len(tests) > 1:
        test["sd"] = {name: float(np.std(found, ddof=1)) for name, found in columns.items()}
    return {
        "stages": [
            _stage(list(same)) for same in zip(*(run["stages"] for run in runs), strict=True)
        ],
        "test": test,
        "per_seed": [
            {"seed": run["seed"], "stages": run["stages"], "test": own}
            for run, own in zip(runs, tests, strict=True)
        ],
    }


def _stage(results: list[Outcome]) -> dict[str, Any]:
    return {
        "name": results[0]["name"],
        "epochs": results[0]["epochs"],
        "trainable_parameters": results[0]["trainable_parameters"],
        "train_images_per_second": _mean([r["train_images_per_second"] for r in results]),
        "train_seconds": _mean([r["train_seconds"] for r in results]),
        "passes": _mean_at(results, "passes"),
        "data_wait_share": _mean_at(results, "data_wait_share"),
        "alignment": _mean_at(results, "alignment"),
        "candidates": {
            name: _mean_at(results, "candidates", name) for name in results[0].get("candidates", ())
        },
        "validation_images": results[0].get("validation_images"),
        "validated_every": results[0].get("validated_every"),
        "best_validation_accuracy": _mean([r["best_validation_accuracy"] for r in results]),
    }


def _mean(numbers: list[float]) -> float:
    return float(np.mean(numbers))


def _compare(
    first: str, a: list[Outcome], second: str, b: list[Outcome], label: str
) -> dict[str, Any]:
    """A paired test of two methods' robust accuracies in the column `label`.

    Over two or more seeds: Student's paired t-test on the seeds' accuracies. With one seed:
    McNemar's exact test on the test images, which speaks of these two models only.
    """
    gaps = [
        x["test"]["robust_accuracy"][label] - y["test"]["robust_accuracy"][label]
        for x, y in zip(a, b, strict=True)
    ]
    common = {"methods": [first, second], "attack": label, "difference": _mean(gaps)}
    if len(gaps) == 1:
        name, p = "McNemar exact, over test images", _mcnemar(a[0], b[0], label)
    elif np.ptp(gaps) < 1e-12:
        name, p = "paired t, over seeds; undefined, equal gaps", None
    else:
        name, p = "paired t, over seeds", float(np.asarray(stats.ttest_1samp(gaps, 0.0))[1])
    return {**common, "test": name, "p_value": p}


def _mcnemar(a: Outcome, b: Outcome, label: str) -> float:
    flags = (run["test"]["robust_flags"][label] for run in (a, b))
    differ = [x for x, y in zip(*flags, strict=True) if x != y]
    return float(stats.binomtest(differ.count("1"), len(differ)).pvalue) if differ else 1.0


COSTS = ("passes", "seconds")
"""Columns of the final table where a method of `COSTED` stands beside others."""

COSTED = {"roli_fast", "ramp", "ramp_fast"}
"""Methods that make other passes than PGD-7 in every epoch."""


def table(summary: dict[str, Any]) -> str:
    """The final table as text."""
    labels = list(next(iter(summary["methods"].values()))["test"]["robust_accuracy"])
    costs = not COSTED.isdisjoint(summary["methods"])
    header = ["method", "stages", "clean", *labels, *COSTS * costs, "train images/s"]
    rows = [_row(name, method, labels, costs) for name, method in summary["methods"].items()]
    return "\n".join([*align([header, *rows]), "", *_remarks(summary)])


def _row(name: str, method: dict[str, Any], labels: list[str], costs: bool) -> list[str]:
    test = method["test"]
    spread = test.get("sd", test["standard_error"])
    cells = [percent(test["clean_accuracy"], spread["clean"])]
    cells += [percent(test["robust_accuracy"][label], spread[label]) for label in labels]
    stages = " + ".join(f"{stage['name']} {stage['epochs']}" for stage in method["stages"])
    for key in ("passes", "train_seconds") if costs else ():
        parts = [stage[key] for stage in method["stages"]]
        cells.append("-" if None in parts else f"{sum(parts):,.0f}")
    speeds = " / ".join(f"{stage['train_images_per_second']:.0f}" for stage in method["stages"])
    return [name, stages, *cells, speeds]


def percent(value: float, spread: float) -> str:
    """Two fractions as "12.3 +- 4.5 %"."""
    return f"{100 * value:.1f} +- {100 * spread:.1f} %"


def _remarks(summary: dict[str, Any]) -> list[str]:
    seeds = len(summary["seeds"])
    spread = f"sd over {seeds} seeds" if seeds > 1 else "standard error, one seed"
    lines = [
        f"{summary['test_images']} test images, {_radii(summary)}; +- is the {spread}.",
    ]
    if "threat" in summary:
        lines.append(f"Attacked by {summary['attack_label']} in each norm; union: right in all.")
    if summary["pretrain"]:
        score = 100 * summary["pretrain"]["best_validation_accuracy"]
        speed = summary["pretrain"]["train_images_per_second"]
        lines.append(f"Pretraining: {score:.1f} % on its validation split, {speed:.0f} images/s.")
    for name, method in summary["methods"].items():
        for stage in method["stages"]:
            lines += _of_stage(f"{name}/{stage['name']}", stage)
    for entry in summary["comparisons"]:
        first, second = entry["methods"]
        p = "-" if entry["p_value"] is None else f"{entry['p_value']:.2g}"
        lines.append(
            f"{first} - {second}, {entry['attack']}: {100 * entry['difference']:+.1f} points, "
            f"p = {p} ({entry['test']})."
        )
    for name, method in summary["methods"].items():
        worst = method["test"]["per_class"][0]
        shares = ", ".join(f"{k} {100 * v:.1f} %" for k, v in worst["accuracy"].items())
        lines.append(f"Worst class of {name}: '{worst['class']}', {shares}.")
    guess = f"Guessing the most frequent class is right for {100 * summary['guessing']:.1f} %."
    lines.append(guess)
    lines += [f"Warning: {text}." for text in summary["warnings"]]
    if summary["paper_compat"]:
        lines.append(f"Faults of the release switched on: {', '.join(summary['paper_compat'])}.")
    if summary["note"]:
        lines.append(f"Note: {summary['note']}.")
    return lines


def _of_stage(name: str, stage: dict[str, Any]) -> list[str]:
    """How a stage was validated, where that is not every image in every epoch."""
    lines, aligned = [], stage.get("alignment")
    if (stage.get("validated_every") or 1) > 1 or aligned is not None:
        text = f"{name}: validated on {stage['validation_images']} images, "
        text += f"every {stage['validated_every']} epochs"
        lines.append(text + ("." if aligned is None else f"; alignment {aligned:.2f}."))
    if found := stage.get("candidates"):
        shown = " and ".join(f"{100 * v:.1f} % {n}" for n, v in found.items() if v is not None)
        lines.append(f"{name}: validation accuracy of the weights {shown}.")
    return lines


def _radii(summary: dict[str, Any]) -> str:
    """ "linf eps 0.03137", or every norm of a threat of several."""
    attack, threat = summary["attack"], summary.get("threat")
    if threat:
        norms, radii = (
            [threat["norm"], *threat["other_norms"]],
            [threat["eps"], *threat["other_eps"]],
        )
    else:
        norms, radii = attack.get("norms") or [attack.get("norm")], attack.get("eps")
    radii = radii if isinstance(radii, list) else [radii]
    if None in norms:
        return attack["name"]
    return ", ".join(f"{n} eps {eps:.4g}" for n, eps in zip(norms, radii, strict=True))


def analysis_table(run_dir: Path, methods: list[str]) -> str:
    """Head norm, drift and calibration of each method, means over seeds; empty without any."""
    rows = []
    for method in methods:
        trees = [read_analysis(path) for path in sorted(run_dir.glob(f"seed-*/{method}/{FILE}"))]
        if trees := [tree for tree in trees if tree["stages"]]:
            rows.append([method, *_cells(trees)])
    if not rows:
        return ""
    header = ["method", "head norm", "drift clean", "drift attacked"]
    header += ["ECE clean > with T", "ECE attacked > with T"]
    remark = (
        "Head norm: at each stage's start and at the end. Drift: of features over the last stage, "
        "relative. ECE: in points, of test images; with a temperature where one could be fitted."
    )
    return "\n".join([*align([header, *rows]), "", remark])


def _cells(trees: list[dict[str, Any]]) -> list[str]:
    stages = min(len(tree["stages"]) for tree in trees)
    ends = [*((i, "start") for i in range(stages)), (-1, "end")]
    norms = [_mean_at(trees, "stages", i, end, "head", "norm") for i, end in ends]
    cells = [" > ".join(_number(norm, "{:.3g}") for norm in norms)]
    for kind in ("clean", "adversarial"):
        drift = _mean_at(trees, "stages", -1, "change", kind, "relative")
        cells.append(_number(drift, "{:.3f}"))
    for kind in ("clean", "adversarial"):
        fitted = _mean_at(trees, "calibration", kind, "fitted") == 1
        found = [_mean_at(trees, "calibration", kind, when, "ece") for when in ("before", "after")]
        shown = [_number(None if p is None else 100 * p, "{:.1f}") for p in found]
        cells.append(" > ".join(shown) if fitted else shown[0])
    return cells


def _mean_at(trees: list[dict[str, Any]], *path: str | int) -> float | None:
    """The mean of the numbers at `path`; None where one of the trees lacks it."""
    found = values(trees, *path)
    return _mean(found) if len(found) == len(trees) else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
