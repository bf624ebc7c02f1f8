"""Evaluations by stronger attacks that lie in the run directory."""

import shlex

from roli_fast.report.blocks import Block, Missing, Section, Table
from roli_fast.report.read import Run, Tree, at
from roli_fast.report.subjects import Page
from roli_fast.report.text import count, percent, radius


def assessed(page: Page) -> Section:
    """What each evaluation.json says, or the command that makes one."""
    blocks: list[Block] = []
    for run in page.runs:
        rows, sources = [], []
        for folder, tree in run.evaluations.items():
            rows += _rows(folder.relative_to(run.folder).as_posix(), tree)
            sources.append(page.source(run, folder.relative_to(run.folder) / "evaluation.json"))
        if rows:
            name = f" of {run.name}" if page.several else ""
            caption = f"Evaluations{name}; in brackets the 95 % Wilson interval."
            head = ("evaluation", "model", "attacks", "threat", "images", "clean", "robust")
            blocks.append(Table(caption, head, rows, sources, words=(1, 2, 3)))
    if not blocks:
        run = page.runs[0]
        what = (
            "No evaluation lies in the run directory: accuracies above are those under the test "
            "attack, and stronger attacks find lower ones. AutoAttack:"
        )
        blocks.append(Missing(what, _command(run)))
    return Section("evaluation", "Stronger attacks", blocks)


def _command(run: Run) -> str:
    method = next((m for m in run.methods if m.seeds), None)
    place = run.folder
    if method:
        place = method.folder / f"seed-{method.seeds[0].number}" / method.name
    out = run.folder / "evaluation" / (method.name if method else "model")
    model, where = shlex.quote(str(place)), shlex.quote(str(out))
    return f"python -m roli_fast.evaluate --model {model} --out {where}"


def _rows(name: str, tree: Tree) -> list[list[str]]:
    attacks = " + ".join(str(a.get("name")) for a in tree.get("attacks") or ())
    model = str(at(tree, "model", "source") or at(tree, "model", "file"))
    images = count(tree["images"], "images")
    first = [name, "/".join(model.split("/")[-3:]), attacks]
    rows = [
        [
            *first,
            radius(norm, entry.get("eps")),
            images,
            _share(tree["clean"]),
            _share(entry.get("robust")),
        ]
        for norm, entry in tree["norms"].items()
    ]
    if len(tree["norms"]) > 1:
        rows.append([*first, "union", images, _share(tree["clean"]), _share(tree.get("union"))])
    return rows


def _share(entry: Tree | None) -> str:
    if not entry:
        return "–"
    low, high = entry["interval_95"]
    return f"{percent(entry['accuracy'])} [{100 * low:.1f}, {100 * high:.1f}]"
