"""What an evaluation ends with: evaluation.json, adversarial images, and the table."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from roli_fast.attacks.ensemble import total
from roli_fast.attacks.warning_signs import black_box
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate.assessment import SCHEMA, Assessment
from roli_fast.evaluate.curve import Curve
from roli_fast.evaluate.dataset import (
    CURVE,
    SHIFT,
    Chunk,
    Images,
    Radii,
    Search,
    Store,
    merged,
)
from roli_fast.evaluate.prepare import Prepared
from roli_fast.evaluate.shares import (
    accuracy_of,
    by_class,
    collapse,
    majority,
    mean_accuracy,
    to_flags,
    to_text,
)
from roli_fast.files import naming, read_json, write_tensors, writing
from roli_fast.running.environment import environment
from roli_fast.running.text import align
from roli_fast.threat import as_pixels

REPORT = "evaluation.json"
IMAGES = "adversarial.safetensors"
PICTURES = "adversarial"
"""The folder of the same as PNGs."""

PICTURE = "curve.png"
FORMAT = 1

CLASSES_SHOWN = 12
"""Classes in the table of the command; all are in evaluation.json."""


def build_report(
    assessment: Assessment,
    ready: Prepared,
    sets: Sequence[Images],
    done: Sequence[Sequence[Chunk]],
) -> dict[str, Any]:
    """What evaluation.json holds. Samples are in the order of the data, not of the evaluation."""
    own, *others = map(merged, done)
    images, dataset = sets[0], ready.dataset
    order = dataset.ids.argsort()
    labels = dataset.labels[order]
    unseen = [
        {"attack": one.label, "norm": one.norm} | _group(images, own, group, float(one.eps or 0))
        for group, one in assessment.unseen_attacks.items()
    ]
    norms = {t.norm: _group(images, own, t.norm, t.eps) for t in assessment.threats}
    if assessment.union_only:
        norms = {norm: entry | {"robust": None} for norm, entry in norms.items()}
    shifts, (union, answers) = _shifts(own, *others), own.under(None)
    searched = [f for f in own.found if f.group.split()[0] not in (CURVE, SHIFT)]
    names = dict(zip(ready.outputs, ready.splits.classes, strict=True))
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
        "clean": accuracy_of(own.clean) | {"predictions": own.answers.tolist()},
        "norms": norms,
        "union": accuracy_of(union) | {"predictions": answers.tolist()},
        "guessing": majority(labels),
        "per_class": _per_class(own, labels, names, norms),
        "unseen": _unseen(unseen, union, shifts),
        "shifts": shifts,
        "curves": _curves(images, own, Path(assessment.model.source).stem),
        "lost": sum(found.lost for found in searched),
        "cost": asdict(total([own.cost, *(found.cost for found in searched)])),
        "seconds": sum(found.seconds for found in searched),
        "warnings": _warnings(images, own, norms, collapse(own.clean, labels, names)),
        "notes": [*ready.opened.notes, *([assessment.note] if assessment.note else [])],
        "ids": own.ids,
        "names": [dataset.name(place) for place in order.tolist()],
        "labels": labels.tolist(),
        "environment": environment(ready.device, torch.get_num_threads()),
        "identity": ready.found,
    }


def _group(images: Images, own: Chunk, group: str, eps: float) -> dict[str, Any]:
    """One norm: its searches, and the accuracy against all of them."""
    attacks = {row.label: row.attack for row in _searches(images, group)}
    searches = [
        {
            "part": found.part,
            "attack": SCHEMA.to_tree(attacks[found.part]),
            "attacked": found.attacked,
            "fooled": int(found.fooled.sum()),
            "lost": found.lost,
            "cost": asdict(found.cost),
            "seconds": found.seconds,
            "notes": list(found.notes),
            "fooled_flags": to_text(found.fooled),
        }
        for found in own.rows(group)
    ]
    right, answers = own.under(group)
    robust = accuracy_of(right) | {"predictions": answers.tolist()}
    return {"eps": eps, "robust": robust, "searches": searches}


def _searches(images: Images, group: str) -> list[Search]:
    return [row for row in images.rows if isinstance(row, Search) and row.group == group]


def _per_class(
    own: Chunk, labels: Tensor, names: dict[int, str], norms: dict[str, Any]
) -> list[dict[str, Any]]:
    """`by_class` of clean images, of each norm, and of their union where they are several; with
    "attacked_as", how often each answer is given under all attacks: a row of the confusion
    matrix."""
    right, answers = own.under(None)
    columns = {"clean": [own.clean]}
    columns |= {n: [own.alive(n)] for n, e in norms.items() if e["robust"] is not None}
    if len(norms) > 1:
        columns["union"] = [right]
    found = by_class(names, labels, columns)
    for entry in found:
        counts = Counter(answers[labels == entry["label"]].tolist()).most_common()
        entry["attacked_as"] = {names.get(k, f"output {k}"): count for k, count in counts}
    return found


def _warnings(
    images: Images, own: Chunk, norms: dict[str, Any], collapsed: str | None
) -> list[str]:
    found = [*([collapsed] if collapsed else []), *own.signs.values()]
    for norm, entry in norms.items():
        attacks = [row.attack for row in _searches(images, norm)]
        signs = black_box(attacks, [search["fooled"] for search in entry["searches"]])
        found += [f"{norm}: {sign.text}" for sign in signs]
    return found


def _shifts(own: Chunk, second: Chunk | None = None) -> dict[str, Any] | None:
    """Each corruption at each severity, the mean over severities and kinds, and the second data
    set, which has ids of its own; None without any."""
    kinds: dict[str, dict[str, Any]] = {}
    for found in own.found:
        if found.group.startswith(f"{SHIFT} "):
            kind = kinds.setdefault(found.group.split(" ", 1)[1], {})
            kind[found.part] = _as_seen(~found.fooled, found.cost)
    if not kinds and second is None:
        return None
    means = [mean_accuracy(levels.values()) for levels in kinds.values()]
    return {
        "corruptions": kinds,
        "corruption_accuracy": sum(means) / len(means) if means else None,
        "ood": second and _as_seen(second.clean, second.cost) | {"ids": second.ids},
    }


def _as_seen(right: Tensor, cost: Any) -> dict[str, Any]:
    """Images that were classified and not attacked."""
    return accuracy_of(right) | {"images": len(right), "cost": asdict(cost)}


def _curves(images: Images, own: Chunk, name: str) -> list[dict[str, Any]] | None:
    """Each curve as `Curve.as_json`, with the flags of every radius."""
    curves = []
    for row in (row for row in images.rows if isinstance(row, Radii)):
        found = own.rows(row.names[0][0])
        right = torch.stack([own.clean, *(~one.fooled for one in found)])
        cost = total([one.cost for one in found])
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
    """Write adversarial.safetensors, with `ids`, `labels`, and norm -> images in the same order,
    where what nothing fooled is as it was; and every image that fooled the model as
    adversarial/NORM/NAME.png, rounded to pixels, with the image it was made of as
    adversarial/clean/NAME.png."""
    dataset, parts = images.dataset, {norm: list[Tensor]() for norm in norms}
    for chunk, places in zip(done, images.parts.values(), strict=True):
        x = dataset.batch(torch.tensor(places)).x
        for norm, found in store.images(chunk, x, norms).items():
            parts[norm].append(found)
            for row in (chunk.clean & ~chunk.alive(norm)).nonzero()[:, 0].tolist():
                name = picture_name(dataset.name(places[row]))
                _write_png(folder / PICTURES / norm / name, as_pixels(found[row], x[row]))
                _write_png(folder / PICTURES / "clean" / name, as_pixels(x[row], x[row]))
    order = dataset.ids.argsort()
    tensors = {norm: torch.cat(found)[order] for norm, found in parts.items()}
    tensors |= {"ids": dataset.ids[order], "labels": dataset.labels[order]}
    write_tensors(folder / IMAGES, tensors, {"roli_fast": json.dumps({"norms": list(norms)})})


def picture_name(name: str) -> str:
    """The relative path of an image's PNG: "cat/1.jpg.png" of "cat/1.jpg", "7.png" of "7"; it
    never leads out of its folder."""
    parts = [part for part in Path(name).parts if part not in ("..", "/")]
    path = "/".join(parts) or "image"
    return path if path.endswith(".png") else f"{path}.png"


def _write_png(path: Path, pixels: Tensor) -> None:
    """uint8 (C, H, W) of one or three channels."""
    channels = pixels.movedim(0, -1).numpy()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(channels[..., 0] if channels.shape[-1] == 1 else channels).save(path)


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
    """A report as text: accuracies, the classes worst first, and remarks."""
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
    return "\n".join([*lines, "", *_class_lines(report["per_class"]), "", *_remarks(report)])


def _class_lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Clean and robust accuracy of the worst classes, and what they are taken for."""
    columns = list(entries[0]["accuracy"])
    rows = [["class, worst first", "images", *columns, "attacked, taken most often for"]]
    for entry in entries[:CLASSES_SHOWN]:
        others = [(n, k) for n, k in entry["attacked_as"].items() if n != entry["class"]]
        taken = f"{others[0][0]} ({others[0][1]})" if others else ""
        shares = [_percent(share) for share in entry["accuracy"].values()]
        rows.append([entry["class"], str(entry["images"]), *shares, taken])
    more = len(entries) - CLASSES_SHOWN
    return align(rows) + ([f"{more} more classes are in {REPORT}."] if more > 0 else [])


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
        f"right. Guessing the most frequent class is right for {_percent(report['guessing'])}.",
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
