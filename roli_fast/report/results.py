"""Test accuracy: the table that methods are compared by, and how sure it is."""

import shlex
from collections.abc import Sequence

from roli_fast.report.blocks import Block, Chart, Charts, Fold, Missing, Section, Table
from roli_fast.report.read import Run, Tree, at
from roli_fast.report.setting import attack_text, data_text, threats
from roli_fast.report.subjects import Page, Subject
from roli_fast.report.svg import Axis, Row, dots
from roli_fast.report.text import (
    NONE,
    count,
    duration,
    listed,
    method_name,
    p_value,
    percent,
    percent_within,
    points,
    radius,
)

LEVEL = 0.05
"""Of p, from which on a difference is not called one."""

FEW = 2
"""Pairs of methods that are told in sentences; of more there is a table."""

TWINS = ({"roli", "ranli"}, {"lp_ft", "ft"})
"""Methods that differ in the head that the fine-tune begins with."""


def results(page: Page) -> Section:
    """The table, the same as a drawing, the paired tests, and every seed."""
    tested = [s for s in page.subjects if s.method.test]
    blocks: list[Block] = [_unfinished(run) for run in page.runs if not run.summary]
    if tested:
        blocks.append(_table(page, tested))
        if len(tested) > 1:  # one method has nothing to be compared with
            blocks.append(_chart(page, tested))
        blocks += _comparisons(page)
        blocks.append(_per_seed(page, tested))
    elif seeds := _so_far(page):
        blocks.append(seeds)
    blocks += [table for run in page.runs if (table := _sweep(page, run))]
    return Section("results", "Test accuracy", blocks)


def headline(run: Run) -> str:
    """One sentence: what was run on what, and what came out where two methods can be compared."""
    methods = listed([method_name(m.name) for m in run.methods]) if run.methods else "No method"
    radii = listed([radius(n, e) for n, e in threats(run)]) if threats(run) else ""
    return f"{methods} on {data_text(run)}; threat {radii}; {_seeds(run)}."


def findings(run: Run) -> list[str]:
    """What the paired tests of summary.json say, in words that claim no more.

    Of many pairs those that differ in the head alone; before them the highest accuracies.
    """
    summary = run.summary or {}
    seeds = len(summary.get("seeds") or ())
    entries: list[Tree] = list(summary.get("comparisons") or ())
    found: list[str] = []
    if len(entries) > FEW:
        entries = [e for e in entries if set(e["methods"]) in TWINS]
        found = [_highest(run)]
    for entry in entries:
        first, second = entry["methods"]
        tests = {m.name: m.test for m in run.methods if m.test}
        shares = [at(tests, name, "robust_accuracy", entry["attack"]) for name in (first, second)]
        one, other = method_name(first), method_name(second)
        text = (
            f"Robust accuracy under {entry['attack']}: {one} {percent(shares[0])}, {other} "
            f"{percent(shares[1])}, a difference of {points(entry['difference'])} "
            f"({entry['test'].replace('over seeds', f'over {seeds} seeds')}: "
            f"{p_value(entry['p_value'])})"
        )
        found.append(f"{text}. {_verdict(entry, seeds)}")
    return found


def _highest(run: Run) -> str:
    """Which method has the highest mean in each column; equals are all named."""
    said = []
    for column in ("clean", *run.columns):
        means = {m.name: v for m in run.methods if (v := _share(m.test, column)) is not None}
        best = [method_name(name) for name, v in means.items() if v == max(means.values())]
        said.append(f"{column} {listed(best)} ({percent(max(means.values()))})")
    return f"Highest mean accuracy: {'; '.join(said)}. The paired differences stand below."


def _verdict(entry: Tree, seeds: int) -> str:
    p = entry["p_value"]
    shown = p is not None and p < LEVEL
    if seeds == 1:
        told = "these two trained models differ" if shown else "no difference is shown"
        return f"One seed: {told}; other seeds may come out otherwise."
    return "" if shown else "That is no evidence of a difference."


def _seeds(run: Run) -> str:
    return count(len(run.config.get("seeds") or (0,)), "seeds")


def _unfinished(run: Run) -> Missing:
    folder = shlex.quote(str(run.folder))
    if any(seed.test for method in run.methods for seed in method.seeds):
        what = (
            f"{run.name} is not finished: it has no summary.json, so no means and no paired tests."
        )
    else:
        what = f"{run.name} is not finished, or was not to be tested: it has no summary.json."
    what += " Go on with:"
    return Missing(what, f"python -m roli_fast.train --run_dir {folder} --resume")


def _spread(test: Tree) -> Tree:
    return test.get("sd") or test.get("standard_error") or {}


def _spread_text(tested: Sequence[Subject]) -> str:
    """What ± is."""
    several = {len(s.method.seeds) for s in tested}
    if several == {1}:
        text = "± is the binomial standard error of the test images; other seeds may differ by more"
    elif 1 in several:
        text = (
            "± is the sample standard deviation over seeds; with one seed the binomial standard "
            "error of the test images"
        )
    else:
        text = (
            f"± is the sample standard deviation over {listed([str(n) for n in sorted(several)])}"
        )
        text += " seeds"
    return text


def _columns(tested: Sequence[Subject]) -> list[str]:
    return list(
        dict.fromkeys(c for s in tested for c in at(s.method.test, "robust_accuracy") or ())
    )


def _table(page: Page, tested: Sequence[Subject]) -> Table:
    columns = _columns(tested)
    rows = []
    for subject in tested:
        test = subject.method.test or {}
        spread = _spread(test)
        stages = " + ".join(f"{s['name']} {s['epochs']}" for s in subject.method.seeds[0].stages)
        seconds = sum(
            s["train_seconds"] for seed in subject.method.seeds for s in seed.stages
        ) / len(subject.method.seeds)
        shares = [percent_within(at(test, "robust_accuracy", c), spread.get(c)) for c in columns]
        clean = percent_within(test.get("clean_accuracy"), spread.get("clean"))
        seeds = str(len(subject.method.seeds))
        rows.append([subject.label, clean, *shares, seeds, stages, duration(seconds)])
    first = page.runs[0]
    what = f"Accuracy on {count(tested[0].method.test['images'], 'test images')}"  # type: ignore[index]
    if not page.several:
        what += f", attacked by {attack_text(first.config.get('test'))}"
        what += f" in {listed([radius(n, e) for n, e in threats(first)])}" if threats(first) else ""
    else:
        what = "Accuracy on the test images of each run, attacked by its own test attack"
    caption = f"{what}. {_spread_text(tested)}."
    if not page.several and (classes := len((first.summary or {}).get("classes") or ())):
        caption += f" Guessing among {classes} classes: {percent(1 / classes)}."
    robust = [f"robust, {c}" for c in columns]
    head = ("method", "clean", *robust, "seeds", "stages and epochs", "training time")
    terms = [("training time", "of all stages of one seed, the mean over seeds, validation aside")]
    if "union" in columns:
        terms.append(("robust, union", "right as it is and under every norm"))
    return Table(caption, head, rows, page.summaries(), terms=terms, words=(len(head) - 2,))


def _chart(page: Page, tested: Sequence[Subject]) -> Charts:
    charts = []
    for column in ("clean", *_columns(tested)):
        rows = []
        for subject in tested:
            test = subject.method.test or {}
            value = _share(test, column)
            if value is None:
                continue
            spread = _spread(test).get(column)
            singles = [
                100 * v for s in subject.method.seeds if (v := _share(s.test, column)) is not None
            ]
            dot = (100 * value, 100 * spread if spread else None, singles, subject.look)
            rows.append(Row(subject.label, [dot]))
        title = "Clean accuracy" if column == "clean" else f"Robust accuracy, {column}"
        told = "; ".join(f"{row.label} {row.dots[0][0]:.1f} %" for row in rows)
        drawn = dots(f"{title}: {told}", rows, Axis("accuracy in %"), lambda v: f"{v:.1f} %")
        charts.append(Chart(title, drawn))
    small = " Small dots are the seeds." if any(len(s.method.seeds) > 1 for s in tested) else ""
    caption = f"The table as a drawing: bars are ±.{small} The axes need not begin at 0."
    return Charts(charts, caption, sources=page.summaries())


def _share(test: Tree | None, column: str) -> float | None:
    path = ("clean_accuracy",) if column == "clean" else ("robust_accuracy", column)
    return at(test, *path)


def _comparisons(page: Page) -> list[Block]:
    """Few pairs of one run are told in the page's first lines; others get a table."""
    entries = [
        (f"{name}: " if page.several else "", entry)
        for name, run in zip(page.names, page.runs, strict=True)
        for entry in (run.summary or {}).get("comparisons") or ()
    ]
    if len(entries) <= (0 if page.several else FEW):
        return []
    rows = [
        [
            f"{name}{method_name(e['methods'][0])} − {method_name(e['methods'][1])}",
            e["attack"],
            points(e["difference"]),
            p_value(e["p_value"]),
            e["test"],
        ]
        for name, e in entries
    ]
    caption = (
        "Paired differences of robust accuracy between the methods of a run. p is not corrected "
        "for the number of pairs."
    )
    head = ("methods", "attack", "difference", "p", "test")
    return [Table(caption, head, rows, page.summaries(), words=(1, 4))]


def _per_seed(page: Page, tested: Sequence[Subject]) -> Fold:
    columns = _columns(tested)
    rows = [
        [
            subject.label,
            str(seed.number),
            *(percent(_share(seed.test, c)) for c in ("clean", *columns)),
        ]
        for subject in tested
        for seed in subject.method.seeds
    ]
    head = ("method", "seed", "clean", *(f"robust, {c}" for c in columns))
    table = Table("Test accuracy of every seed.", head, rows, page.summaries())
    return Fold("Every seed", [table])


def _so_far(page: Page) -> Table | None:
    """Of an unfinished run: what its seeds have."""
    rows = []
    for subject in page.subjects:
        for seed in subject.method.seeds:
            last = seed.stages[-1] if seed.stages else {}
            robust = at(seed.test, "robust_accuracy") or {}
            told = ", ".join(f"{c} {percent(v)}" for c, v in robust.items()) or NONE
            rows.append(
                [
                    subject.label,
                    str(seed.number),
                    str(last.get("name", NONE)),
                    percent(last.get("best_validation_accuracy")),
                    percent(at(seed.test, "clean_accuracy")),
                    told,
                ]
            )
    if not rows:
        return None
    caption = (
        "What the seeds have so far; validation is that of the last finished stage's kept epoch."
    )
    head = ("method", "seed", "last stage", "validation", "test, clean", "test, robust")
    sources = page.of_seeds(page.subjects, "test.json")
    files = [run for run in page.runs if not run.summary]
    sources += [page.source(run, "seed-*/METHOD/stage-*/result.json") for run in files]
    return Table(caption, head, rows, sources, words=(2,))


def _sweep(page: Page, run: Run) -> Table | None:
    """The cells of a sweep, and which were chosen."""
    sweep = (run.summary or {}).get("sweep")
    if not sweep:
        return None
    rows = []
    for row in sweep["cells"]:
        share = percent_within(row["validation_accuracy"], row["sd"])
        state = "chosen" if row["chosen"] else "diverged" if row["diverged"] else ""
        rows.append([row["cell"], method_name(row["method"]), share, state])
    caption = (
        "The sweep: validation accuracy of every cell, ± the sample standard deviation over seeds. "
        "The chosen cells alone were tested, and the rest of this page is about them."
    )
    source = [page.source(run, "summary.json")]
    return Table(caption, ("cell", "method", "validation", ""), rows, source, words=(1, 3))
