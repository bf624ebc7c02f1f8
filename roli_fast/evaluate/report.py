"""What an evaluation ends with: evaluation.json, adversarial.safetensors, and the table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roli_fast.attacks.ensemble import total
from roli_fast.attacks.warning_signs import black_box
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate.assessment import SCHEMA, Assessment
from roli_fast.evaluate.curve import Curve
from roli_fast.evaluate.prepare import Prepared
from roli_fast.evaluate.rows import CURVE, SHIFT, Radii, Search
from roli_fast.evaluate.runner import Images
from roli_fast.evaluate.shares import accuracy_of, mean_accuracy, to_flags, to_text
from roli_fast.evaluate.store import Chunk, Found, Store
from roli_fast.files import naming, read_json, write_tensors
from roli_fast.running.environment import environment
from roli_fast.running.text import align

REPORT = "evaluation.json"
IMAGES = "adversarial.safetensors"
PICTURE = "curve.png"
FORMAT = 1


@dataclass(frozen=True)
class Flags:
    """The finished chunks of one set of images, read as a whole, in the order of the data's ids."""

    images: Images
    done: Sequence[Chunk]

    @property
    def order(self) -> Tensor:
        """Places of the samples in the order of the evaluation, by their ids."""
        return self.images.dataset.ids.argsort()

    def alive(self, group: str | None) -> Tensor:
        """bool (N,), see `Chunk.alive`."""
        return torch.cat([chunk.alive(group) for chunk in self.done])[self.order]

    @property
    def clean(self) -> Tensor:
        """bool (N,): right as it is."""
        return self.alive("no group")

    def rows(self, group: str) -> dict[str, list[Found]]:
        """Part -> that row of every chunk."""
        places = [(i, part) for i, (own, part) in enumerate(self.images.plan) if own == group]
        return {part: [chunk.found[i] for chunk in self.done] for i, part in places}

    def right(self, row: Sequence[Found]) -> Tensor:
        """bool (N,): not fooled by this row."""
        return ~torch.cat([found.fooled for found in row])[self.order]


def build_report(
    assessment: Assessment,
    ready: Prepared,
    sets: Sequence[Images],
    done: Sequence[Sequence[Chunk]],
) -> dict[str, Any]:
    """What evaluation.json holds. Samples are in the order of the data, not of the evaluation."""
    own, *others = map(Flags, sets, done)
    dataset, order = ready.dataset, own.order
    unseen: list[dict[str, Any]] = [
        {"attack": one.attack.label, "norm": one.threat.norm}
        | _group(own, one.group, one.threat.eps)
        for one in assessment.unseen_attacks
    ]
    norms = {threat.norm: _group(own, threat.norm, threat.eps) for threat in assessment.threats}
    if assessment.union_only:
        norms = {norm: entry | {"robust": None} for norm, entry in norms.items()}
    shifts, union = _shifts(own, *others), own.alive(None)
    aside = (CURVE, SHIFT)  # no search of the attacks
    searched = [f for c in own.done for f in c.found if f.group.split()[0] not in aside]
    return {
        "format": FORMAT,
        "model": {**SCHEMA.to_tree(assessment.model), **ready.opened.described},
        "data": {
            **SCHEMA.to_tree(assessment.data),
            "split": assessment.split,
            "classes": list(ready.splits.classes),
            "outputs": list(ready.outputs),
        },
        "images": len(dataset),
        "images_in_split": len(getattr(ready.splits, assessment.split)),
        "seed": assessment.seed,
        "attacks": SCHEMA.to_tree(assessment.attacks),
        "search_dtype": assessment.search_dtype,
        "batch_size": assessment.batch_size,
        "chunk": assessment.chunk,
        "clean": accuracy_of(own.clean),
        "norms": norms,
        "union": accuracy_of(union),
        "unseen": _unseen(unseen, union, shifts),
        "shifts": shifts,
        "curves": _curves(own, Path(assessment.model.source).stem),
        "lost": sum(found.lost for found in searched),
        "cost": asdict(total([*(c.cost for c in own.done), *(f.cost for f in searched)])),
        "seconds": sum(found.seconds for found in searched),
        "warnings": _warnings(own, norms),
        "notes": [*ready.opened.notes, *([assessment.note] if assessment.note else [])],
        "ids": dataset.ids[order].tolist(),
        "names": [dataset.name(place) for place in order.tolist()],
        "labels": dataset.labels[order].tolist(),
        "environment": environment(ready.device, torch.get_num_threads()),
        "identity": ready.found,
    }


def _group(own: Flags, group: str, eps: float) -> dict[str, Any]:
    """One norm: its searches, and the accuracy against all of them."""
    attacks = {row.label: row.attack for row in _searches(own, group)}
    searches = []
    for part, found in own.rows(group).items():
        fooled = ~own.right(found)
        searches.append(
            {
                "part": part,
                "attack": SCHEMA.to_tree(attacks[part]),
                "attacked": sum(one.attacked for one in found),
                "fooled": int(fooled.sum()),
                "lost": sum(one.lost for one in found),
                "cost": asdict(total([one.cost for one in found])),
                "seconds": sum(one.seconds for one in found),
                "notes": list(dict.fromkeys(note for one in found for note in one.notes)),
                "fooled_flags": to_text(fooled),
            }
        )
    return {"eps": eps, "robust": accuracy_of(own.alive(group)), "searches": searches}


def _searches(own: Flags, group: str) -> list[Search]:
    return [row for row in own.images.rows if isinstance(row, Search) and row.group == group]


def _warnings(own: Flags, norms: dict[str, Any]) -> list[str]:
    found = [text for chunk in own.done for text in chunk.signs.values()]
    for norm, entry in norms.items():
        attacks = [row.attack for row in _searches(own, norm)]
        signs = black_box(attacks, [search["fooled"] for search in entry["searches"]])
        found += [f"{norm}: {sign.text}" for sign in signs]
    return found


def _shifts(own: Flags, second: Flags | None = None) -> dict[str, Any] | None:
    """Each corruption at each severity, the mean over severities and kinds, and the second data
    set, which has ids of its own; None without any."""
    kinds: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(g for g, _ in own.images.plan if g.startswith(f"{SHIFT} ")):
        kinds[group.split(" ", 1)[1]] = {
            part: _as_seen(own.right(found), found) for part, found in own.rows(group).items()
        }
    if not kinds and second is None:
        return None
    means = [mean_accuracy(levels.values()) for levels in kinds.values()]
    ood = None
    if second is not None:
        ids = second.images.dataset.ids[second.order].tolist()
        ood = _as_seen(second.clean, second.done) | {"ids": ids}
    return {
        "corruptions": kinds,
        "corruption_accuracy": sum(means) / len(means) if means else None,
        "ood": ood,
    }


def _as_seen(right: Tensor, parts: Sequence[Chunk] | Sequence[Found]) -> dict[str, Any]:
    """Images that were classified and not attacked."""
    cost = asdict(total([part.cost for part in parts]))
    return accuracy_of(right) | {"images": len(right), "cost": cost}


def _curves(own: Flags, name: str) -> list[dict[str, Any]] | None:
    """Each curve as `Curve.as_json`, with the flags of every radius."""
    curves = []
    for row in (row for row in own.images.rows if isinstance(row, Radii)):
        found = own.rows(row.names[0][0])
        right = torch.stack([own.clean, *map(own.right, found.values())])
        cost = total(one.cost for part in found.values() for one in part)
        label, norm = row.attack.label, str(row.attack.norm)
        curve = Curve(name or label, label, norm, (0.0, *row.radii), right, cost)
        curves.append(curve.as_json() | {"flags": [to_text(flags) for flags in right]})
    return curves or None


def _unseen(
    entries: Sequence[dict[str, Any]], union: Tensor, shifts: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Attacks that the model was not trained against: mean, and who stays right under all of them,
    under these and all norms (`union`), and under every corruption too; None without any."""
    if not entries:
        return None
    flags = torch.stack([to_flags(entry["robust"]["flags"]) for entry in entries]).all(0)
    kinds = shifts["corruptions"].values() if shifts else ()
    levels = [to_flags(level["flags"]) for kind in kinds for level in kind.values()]
    whole = torch.stack([flags & union, *levels]).all(0)
    return {
        "attacks": list(entries),
        "mean_accuracy": mean_accuracy(entry["robust"] for entry in entries),
        "union": accuracy_of(flags),
        "union_with_norms": accuracy_of(flags & union),
        "union_with_corruptions": accuracy_of(whole) if levels else None,
    }


def write_images(
    folder: Path, norms: tuple[str, ...], images: Images, store: Store, done: Sequence[Chunk]
) -> None:
    """Write `ids`, `labels`, and norm -> images in the same order; what nothing fooled is as it
    was."""
    dataset, parts = images.dataset, {norm: list[Tensor]() for norm in norms}
    for chunk, rows in zip(done, images.parts.values(), strict=True):
        for norm, found in store.images(chunk, dataset.batch(torch.tensor(rows)).x, norms).items():
            parts[norm].append(found)
    order = dataset.ids.argsort()
    tensors = {norm: torch.cat(found)[order] for norm, found in parts.items()}
    tensors |= {"ids": dataset.ids[order], "labels": dataset.labels[order]}
    write_tensors(folder / IMAGES, tensors, {"roli_fast": json.dumps({"norms": list(norms)})})


@dataclass(frozen=True)
class Report:
    """An evaluation that was read back; flags are bool (N,), in the order of `ids`.

    Args:
        ids: of the samples, int64 (N,): their rows in the data.
        clean: which are classified right as they are.
        robust: norm -> which stay right under it; a norm of a `union_only` evaluation is missing.
        union: which stay right under all norms.
        tree: everything in the file.
    """

    ids: Tensor
    clean: Tensor
    robust: dict[str, Tensor]
    union: Tensor
    tree: dict[str, Any]


def read_report(path: str | Path) -> Report:
    """Read an evaluation.json, or that of a folder.

    Raises:
        RunDirectoryError: there is none, or it is something else.
    """
    path = Path(path)
    file = path / REPORT if path.is_dir() else path
    fix = "A stopped evaluation has none: go on with --resume."
    with naming(file, RunDirectoryError, "path", "an evaluation.json", fix):
        tree = read_json(file)
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']}, not {FORMAT}")
        robust = {n: v["robust"] for n, v in tree["norms"].items() if v["robust"] is not None}
        return Report(
            torch.tensor(tree["ids"]),
            to_flags(tree["clean"]["flags"]),
            {norm: to_flags(entry["flags"]) for norm, entry in robust.items()},
            to_flags(tree["union"]["flags"]),
            tree,
        )


def table(report: dict[str, Any]) -> str:
    """A report as text."""
    rows = [["", "eps", "attacked", "fooled", "accuracy", "95 % interval"]]
    rows.append(_row("clean", report["clean"]))
    for norm, entry in report["norms"].items():
        for search in entry["searches"]:
            counts = [str(search["attacked"]), str(search["fooled"])]
            left = (search["attacked"] - search["fooled"]) / report["images"]
            rows.append([f"{norm} {search['part']}", _eps(entry["eps"]), *counts, _percent(left)])
        if entry["robust"] is not None:
            rows.append(_row(f"{norm} robust", entry["robust"], entry["eps"]))
    if len(report["norms"]) > 1:
        rows.append(_row("union", report["union"]))
    rows += _unseen_rows(report["unseen"]) + _shift_rows(report["shifts"])
    for curve in report["curves"] or ():
        for point in curve["points"][1:]:
            entry = point | {"interval_95": [point["low"], point["high"]]}
            rows.append(_row(f"curve {curve['attack']}", entry, point["eps"]))
    lines = align([[*row, *[""] * (len(rows[0]) - len(row))] for row in rows])
    return "\n".join([*lines, "", *_remarks(report)])


def _unseen_rows(unseen: dict[str, Any] | None) -> list[list[str]]:
    rows: list[list[str]] = []
    if not unseen:
        return rows
    for one in unseen["attacks"]:
        row = _row(f"unseen {one['norm']} {one['attack']}", one["robust"], one["eps"])
        row[2] = str(one["searches"][0]["attacked"])
        row[3] = str(sum(search["fooled"] for search in one["searches"]))
        rows.append(row)
    rows.append(["unseen, mean", "", "", "", _percent(unseen["mean_accuracy"])])
    rows.append(_row("unseen, union", unseen["union"]))
    rows.append(_row("norms and unseen, union", unseen["union_with_norms"]))
    if whole := unseen["union_with_corruptions"]:
        rows.append(_row("norms, unseen, corruptions, union", whole))
    return rows


def _shift_rows(shifts: dict[str, Any] | None) -> list[list[str]]:
    rows: list[list[str]] = []
    if not shifts:
        return rows
    for kind, levels in shifts["corruptions"].items():
        share = _percent(mean_accuracy(levels.values()))
        rows.append([f"{kind}, mean of {len(levels)}", "", "", "", share])
    if rows:
        rows.append(["corruptions, mean", "", "", "", _percent(shifts["corruption_accuracy"])])
    if shifts["ood"]:
        rows.append(_row("second data set", shifts["ood"]))
    return rows


def _row(name: str, entry: dict[str, Any], eps: float | None = None) -> list[str]:
    """What `accuracy_of` made, as a row of the table."""
    low, high = entry["interval_95"]
    interval = f"{100 * low:.1f} to {100 * high:.1f} %"
    radius = "" if eps is None else _eps(eps)
    return [name, radius, "", "", _percent(entry["accuracy"]), interval]


def _remarks(report: dict[str, Any]) -> list[str]:
    count, whole = report["images"], report["images_in_split"]
    which = f"{count} of the {whole}" if count < whole else f"all {count}"
    how = f", chosen at random by seed {report['seed']}" if count < whole else ""
    lines = [
        f"{which} {report['data']['split']} images{how}. A search attacks what those above it left "
        "right.",
        f"The attacks and their clean pass: {report['cost']['forward_images']} images forward, "
        f"{report['cost']['backward_images']} backward, {report['seconds']:.1f} s of search.",
    ]
    if report["search_dtype"] != "float32":
        lines.append(
            f"Searched in {report['search_dtype']}; {report['lost']} images found there did not "
            "fool the model in its own precision, and were searched again by it."
        )
    lines += [f"Warning: {text}." for text in report["warnings"]]
    lines += [f"Note: {text}." for text in report["notes"]]
    for norm, entry in report["norms"].items():
        for search in entry["searches"]:
            lines += [f"Note: {norm} {search['part']}: {note}." for note in search["notes"]]
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _eps(eps: float) -> str:
    pixels = round(eps * 255, 6)
    return f"{pixels:.0f}/255" if eps < 0.2 and pixels.is_integer() else f"{eps:.4g}"
