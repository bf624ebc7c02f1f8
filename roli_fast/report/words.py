"""Sentences of a page whose words depend on the runs: verdicts, warnings, commands."""

import shlex
from itertools import product

from roli_fast.report.facts import data_text, threat_text
from roli_fast.report.plots import share
from roli_fast.report.read import CONDITIONS, Run, Tree, at
from roli_fast.report.subjects import Page
from roli_fast.report.tables import columns
from roli_fast.report.text import count, listed, method_name, p_value, percent, points

LEVEL = 0.05
"""Of p, from which on a difference is not called one."""

FEW = 2
"""Pairs of methods that are told in sentences; of more there is a table."""

TWINS = ({"roli", "ranli"}, {"lp_ft", "ft"})
"""Methods that differ in the head that the fine-tune begins with."""


def headline(run: Run) -> str:
    """One sentence: what was run, and on what."""
    methods = listed([method_name(m.name) for m in run.methods]) if run.methods else "No method"
    classes = len(run.summary.get("classes") or ())
    data = f"{data_text(run)}, {count(classes, 'classes')}" if classes else data_text(run)
    return f"{methods} on {data}; threat {threat_text(run)}; {count(run.seeds, 'seeds')}."


def findings(run: Run) -> list[str]:
    """What the paired tests of summary.json say, in words that claim no more.

    Of many pairs those that differ in the head alone; before them the highest accuracies.
    """
    entries: list[Tree] = list(run.summary.get("comparisons") or ())
    found: list[str] = []
    if len(entries) > FEW:
        entries = [e for e in entries if set(e["methods"]) in TWINS]
        found = [_highest(run)]
    tests = {m.name: m.test for m in run.methods if m.test}
    for entry in entries:
        shares = [
            f"{method_name(name)} {percent(share(tests.get(name), entry['attack']))}"
            for name in entry["methods"]
        ]
        test = entry["test"].replace("over seeds", f"over {len(run.summary['seeds'])} seeds")
        found.append(
            f"Robust accuracy under {entry['attack']}: {', '.join(shares)}, a difference of "
            f"{points(entry['difference'])} ({test}: {p_value(entry['p_value'])}). "
            f"{_verdict(entry['p_value'], len(run.summary['seeds']))}"
        )
    return found


def _highest(run: Run) -> str:
    """Which method has the highest mean in each column; equals are all named."""
    said = []
    for column in ("clean", *columns(Page([run]).tested)):
        means = {m.name: v for m in run.methods if (v := share(m.test, column)) is not None}
        best = max(means.values(), default=None)
        names = [method_name(name) for name, v in means.items() if v == best]
        said.append(f"{column} {listed(names)} ({percent(best)})")
    return f"Highest mean accuracy: {'; '.join(said)}. The paired differences stand below."


def _verdict(p: float | None, seeds: int) -> str:
    shown = p is not None and p < LEVEL
    if seeds == 1:
        told = "these two trained models differ" if shown else "no difference is shown"
        return f"One seed: {told}; other seeds may come out otherwise."
    return "" if shown else "That is no evidence of a difference."


def unanalysed(run: Run) -> str:
    """The seeds without an analysis that can be read."""
    seeds = [(method_name(m.name), s) for m in run.methods for s in m.seeds]
    without = [f"{name} seed {s.number}" for name, s in seeds if not s.analysis]
    return f"{run.name}: no analysis.json of {listed(without)}." if without else ""


def evaluate(run: Run) -> str:
    """The command that evaluates the run's first model by AutoAttack."""
    place, name = run.folder, "model"
    for method in [m for m in run.methods if m.seeds][:1]:
        place, name = method.folder / f"seed-{method.seeds[0].number}" / method.name, method.name
    model, out = shlex.quote(str(place)), shlex.quote(str(run.folder / "evaluation" / name))
    return f"python -m roli_fast.evaluate --model {model} --out {out}"


def notes(page: Page) -> list[str]:
    """What the analyses have to say, each once."""
    trees = [a for s in page.subjects for a in s.method.analyses]
    return list(dict.fromkeys(note for a in trees for note in a.get("notes") or ()))


def unfitted(page: Page) -> list[str]:
    """Why temperatures were not fitted, every reason once with whom it befell."""
    found: dict[str, list[str]] = {}
    for s in page.subjects:
        for seed, (condition, word) in product(s.method.seeds, CONDITIONS.items()):
            fit = at(seed.analysis, "calibration", condition)
            if fit and not fit.get("fitted"):
                whom = f"{s.label} {word} (seed {seed.number})"
                found.setdefault(str(fit.get("reason")), []).append(whom)
    return [
        f"No temperature was fitted, so T = 1, for {listed(whom)}: {reason}."
        for reason, whom in found.items()
    ]


def warnings(page: Page) -> list[str]:
    """Why numbers of these runs may not be compared."""
    found = []
    hashes = {at(run.environment, "identity", "data test images") for run in page.runs}
    pixels = {at(run.environment, "identity", "data test pixels") for run in page.runs}
    if len(hashes) > 1 or len(pixels - {None}) > 1:
        found.append("The runs have not all the same test images: their accuracies do not compare.")
    elif None in hashes:
        found.append("environment.json does not tell whether the runs have the same test images.")
    tested = [run.summary for run in page.runs if run.summary]
    if len({repr((s.get("attack"), s.get("threat"))) for s in tested}) > 1:
        found.append(
            "The runs were tested by different attacks or radii: robust accuracies do not compare."
        )
    if len({tuple(run.config.get("seeds") or (0,)) for run in page.runs}) > 1:
        found.append("The runs have different seeds.")
    without = [name for name, run in zip(page.names, page.runs, strict=True) if not run.summary]
    if without:
        found.append(f"Not finished or not tested: {listed(without)}.")
    return found
