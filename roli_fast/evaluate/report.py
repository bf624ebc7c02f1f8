"""What an evaluation ends with: evaluation.json, adversarial images, and the table."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from roli_fast.attacks.ensemble import total
from roli_fast.attacks.warning_signs import black_box, pgd_gap
from roli_fast.data import ImageDataset
from roli_fast.engine import Cost
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate.config import SCHEMA, EvaluationConfig
from roli_fast.evaluate.curve import joined_curve
from roli_fast.evaluate.dataset import SHIFT, AttackRow, Chunk, Row, Store
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


def build_report(  # noqa: PLR0913 - what was asked, and all that was found
    config: EvaluationConfig,
    ready: Prepared,
    rows: Sequence[Row],
    done: Sequence[Chunk],
    signs: Sequence[str],
    looked: Cost,
) -> dict[str, Any]:
    """What evaluation.json holds. Samples are in the order of the data, not of the evaluation.

    Args:
        config: what was evaluated.
        ready: the data and the model.
        rows: what was measured.
        done: all images, and those of a second data set.
        signs: what the model showed before the attacks.
        looked: the passes that this took.
    """
    own, dataset = done[0], ready.datasets["data"]
    order = dataset.ids.argsort()
    labels = dataset.labels[order]
    attacks = [row for row in rows if isinstance(row, AttackRow)]
    norms = {t.norm: _group(attacks, own, t.norm, t.eps) for t in config.threats}
    signs = [*signs, *(text for norm in norms for text in _signs(attacks, own, norm))]
    if config.union_only:
        norms = {norm: entry | {"robust": None} for norm, entry in norms.items()}
    names = dict(zip(ready.outputs, ready.splits.classes, strict=True))
    collapsed = collapse(own.clean, labels, names)
    shifts, (union, predictions) = _shifts(*done), own.under(*config.norm)
    measured = [row for row in own.rows if row.group.split()[0] not in ("curve", SHIFT)]
    return {
        "format": FORMAT,
        "model": {**SCHEMA.to_tree(config.model), **ready.opened.described},
        "data": {
            **SCHEMA.to_tree(config.data),
            "split": config.split,
            "classes": list(ready.splits.classes),
            "outputs": list(ready.outputs),
        },
        "images": len(dataset),
        "images_in_split": len(getattr(ready.splits, config.split)),
        "seed": config.seed,
        "attacks": SCHEMA.to_tree(config.attacks),
        "search_dtype": config.search_dtype,
        "batch_size": config.batch_size,
        "chunk": config.chunk,
        "clean": accuracy_of(own.clean) | {"predictions": own.predictions.tolist()},
        "norms": norms,
        "union": accuracy_of(union) | {"predictions": predictions.tolist()},
        "guessing": majority(labels),
        "per_class": _per_class(own, labels, names, config),
        "unseen": _unseen(config, attacks, own, union, shifts),
        "shifts": shifts,
        "curves": _curves(config, own),
        "lost": sum(row.lost for row in measured),
        "cost": asdict(total([own.cost, looked, *(row.cost for row in measured)])),
        "seconds": sum(row.seconds for row in measured),
        "warnings": [*([collapsed] if collapsed else []), *signs],
        "notes": [*ready.opened.notes, *([config.note] if config.note else [])],
        "ids": own.ids,
        "names": [dataset.name(place) for place in order.tolist()],
        "labels": labels.tolist(),
        "environment": environment(ready.device, torch.get_num_threads()),
        "identity": ready.identity,
    }


def _group(rows: Sequence[AttackRow], own: Chunk, group: str, eps: float) -> dict[str, Any]:
    """One norm: its attacks one by one, and the accuracy against all of them."""
    attacks = {row.label: row.attack for row in rows if row.group == group}
    searches = [
        {
            "part": found.label,
            "attack": SCHEMA.to_tree(attacks[found.label]),
            "attacked": found.attacked,
            "fooled": int(found.fooled.sum()),
            "lost": found.lost,
            "cost": asdict(found.cost),
            "seconds": found.seconds,
            "notes": list(found.notes),
            "fooled_flags": to_text(found.fooled),
        }
        for found in own.group(group)
    ]
    right, predictions = own.under(group)
    robust = accuracy_of(right) | {"predictions": predictions.tolist()}
    return {"eps": eps, "robust": robust, "searches": searches}


def _signs(rows: Sequence[AttackRow], own: Chunk, norm: str) -> list[str]:
    """Signs of masked gradients that the attacks of a norm gave together."""
    attacks = [row.attack for row in rows if row.group == norm]
    fooled = [int(row.fooled.sum()) for row in own.group(norm)]
    before = own.group(norm)[0].attacked
    signs = [*black_box(attacks, fooled), *pgd_gap(attacks, fooled, before, len(own.ids))]
    return [f"{norm}: {sign.text}" for sign in signs]


def _per_class(
    own: Chunk, labels: Tensor, names: dict[int, str], config: EvaluationConfig
) -> list[dict[str, Any]]:
    """`by_class` of clean images, of each norm, and of their union where they are several; with
    "attacked_as", how often each answer is given under all attacks: a row of the confusion
    matrix."""
    right, predictions = own.under(*config.norm)
    columns = {"clean": [own.clean]}
    columns |= {} if config.union_only else {norm: [own.right(norm)] for norm in config.norm}
    columns |= {"union": [right]} if len(config.norm) > 1 else {}
    found = by_class(names, labels, columns)
    for entry in found:
        counts = Counter(predictions[labels == entry["label"]].tolist()).most_common()
        entry["attacked_as"] = {names.get(k, f"output {k}"): count for k, count in counts}
    return found


def _shifts(own: Chunk, second: Chunk | None = None) -> dict[str, Any] | None:
    """Each corruption at each severity, the mean over severities and kinds, and the second data
    set, which has ids of its own; None without any."""

    def seen(right: Tensor, cost: Cost) -> dict[str, Any]:
        return accuracy_of(right) | {"images": len(right), "cost": asdict(cost)}

    rows = [row for row in own.rows if row.group.startswith(f"{SHIFT} ")]
    kinds = {
        group.removeprefix(f"{SHIFT} "): {row.label: seen(~row.fooled, row.cost) for row in levels}
        for group, levels in groupby(rows, lambda row: row.group)
    }
    if not kinds and second is None:
        return None
    means = [mean_accuracy(levels.values()) for levels in kinds.values()]
    return {
        "corruptions": kinds,
        "corruption_accuracy": sum(means) / len(means) if means else None,
        "ood": second and seen(second.clean, second.cost) | {"ids": second.ids},
    }


def _curves(config: EvaluationConfig, own: Chunk) -> list[dict[str, Any]] | None:
    """Each curve as `Curve.as_json`, with the flags of every radius."""
    name, eps = Path(config.model.source).stem, config.threats[0].eps
    found = [joined_curve([own], rows, name) for rows in config.curves]
    trees = [c.as_json(eps) | {"flags": [to_text(flags) for flags in c.right]} for c in found]
    return trees or None


def _unseen(
    config: EvaluationConfig,
    rows: Sequence[AttackRow],
    own: Chunk,
    union: Tensor,
    shifts: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Attacks that the model was not trained against: mean, and who stays right under all of them,
    under these and all norms (`union`), and under every corruption too; None without any."""
    if not config.unseen:
        return None
    entries = [
        {"attack": one.label, "norm": one.norm} | _group(rows, own, group, float(one.eps or 0))
        for group, one in config.unseen_attacks.items()
    ]
    flags, corruptions = own.right(*config.unseen_attacks), shifts and shifts["corruptions"]
    whole = own.right(*config.unseen_attacks, *(f"{SHIFT} {kind}" for kind in corruptions or ()))
    return {
        "attacks": entries,
        "mean_accuracy": mean_accuracy(entry["robust"] for entry in entries),
        "union": accuracy_of(flags),
        "union_with_norms": accuracy_of(flags & union),
        "union_with_corruptions": accuracy_of(whole & union) if corruptions else None,
    }


def write_images(folder: Path, dataset: ImageDataset, store: Store, done: Sequence[Chunk]) -> None:
    """Write adversarial.safetensors, with `ids`, `labels`, and norm -> images in the same order,
    where what nothing fooled is as it was; and every image that fooled the model as
    adversarial/NORM/NAME.png, rounded to pixels, with the image it was made of as
    adversarial/clean/NAME.png."""
    parts = {norm: list[Tensor]() for norm in store.norms}
    for chunk in done:
        x = dataset.batch(torch.arange(chunk.start, chunk.start + len(chunk.ids))).x
        for norm, found in store.images(chunk, x).items():
            parts[norm].append(found)
            for row in (chunk.clean & ~chunk.right(norm)).nonzero()[:, 0].tolist():
                name = picture_name(dataset.name(chunk.start + row))
                _write_png(folder / PICTURES / norm / name, as_pixels(found[row], x[row]))
                _write_png(folder / PICTURES / "clean" / name, as_pixels(x[row], x[row]))
    order = dataset.ids.argsort()
    tensors = {norm: torch.cat(found)[order] for norm, found in parts.items()}
    tensors |= {"ids": dataset.ids[order], "labels": dataset.labels[order]}
    write_tensors(folder / IMAGES, tensors, {"roli_fast": json.dumps({"norms": list(store.norms)})})


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
            left = (search["attacked"] - search["fooled"]) / report["images"]
            name = f"{norm} {search['part']}"
            rows.append(_row(name, {"accuracy": left}, entry["eps"], [search]))
        if entry["robust"] is not None:
            rows.append(_row(f"{norm} robust", entry["robust"], entry["eps"]))
    if len(report["norms"]) > 1:
        rows.append(_row("union", report["union"]))
    rows += _more_rows(report)
    classes = _class_lines(report["per_class"])
    return "\n".join([*align(rows), "", *classes, "", *_remarks(report)])


def _more_rows(report: dict[str, Any]) -> list[list[str]]:
    """Unseen attacks, corruptions, a second data set and curves, where they were asked for."""
    rows: list[list[str]] = []
    if unseen := report["unseen"]:
        for one in unseen["attacks"]:
            name = f"unseen {one['norm']} {one['attack']}"
            rows.append(_row(name, one["robust"], one["eps"], one["searches"]))
        rows.append(_row("unseen, mean", {"accuracy": unseen["mean_accuracy"]}))
        rows.append(_row("unseen, union", unseen["union"]))
        rows.append(_row("norms and unseen, union", unseen["union_with_norms"]))
        if whole := unseen["union_with_corruptions"]:
            rows.append(_row("norms, unseen, corruptions, union", whole))
    shifts = report["shifts"] or {"corruptions": {}, "ood": None}
    for kind, levels in shifts["corruptions"].items():
        share = {"accuracy": mean_accuracy(levels.values())}
        rows.append(_row(f"{kind}, mean of {len(levels)}", share))
    if shifts["corruptions"]:
        rows.append(_row("corruptions, mean", {"accuracy": shifts["corruption_accuracy"]}))
    if shifts["ood"]:
        rows.append(_row("second data set", shifts["ood"]))
    for curve in report["curves"] or ():
        for point in curve["points"][1:]:
            entry = point | {"interval_95": [point["low"], point["high"]]}
            rows.append(_row(f"curve {curve['attack']}", entry, point["eps"]))
        whole = curve["expected_robustness"]
        rows.append(_row(f"curve {curve['attack']}, expected", whole, whole["eps"]))
    return rows


def _row(
    name: str,
    entry: dict[str, Any],
    eps: float | None = None,
    searches: Sequence[dict[str, Any]] = (),
) -> list[str]:
    """An accuracy, with its interval where it has one, as a row of the table."""
    interval: list[float] = entry.get("interval_95") or []
    return [
        name,
        "" if eps is None else _eps(eps),
        str(searches[0]["attacked"]) if searches else "",
        str(sum(search["fooled"] for search in searches)) if searches else "",
        _percent(entry["accuracy"]),
        " to ".join(f"{100 * end:.1f}" for end in interval) + " %" * bool(interval),
    ]


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
