"""evaluation.json, adversarial.safetensors, and reading them back."""

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
from roli_fast.evaluate.assessment import Assessment
from roli_fast.evaluate.config import SCHEMA
from roli_fast.evaluate.prepare import Prepared
from roli_fast.evaluate.state import Chunk, Found, accuracy_of, to_flags, to_text
from roli_fast.evaluate.unseen import together
from roli_fast.evaluate.worker import Search, Worker
from roli_fast.files import naming, read_json, write_json, write_tensors
from roli_fast.running.environment import environment

REPORT = "evaluation.json"
IMAGES = "adversarial.safetensors"
FORMAT = 1


def build_report(
    assessment: Assessment, ready: Prepared, done: Sequence[Chunk], searches: Sequence[Search]
) -> dict[str, Any]:
    """What evaluation.json holds. Samples are in the order of the data, not of the evaluation."""
    order = torch.tensor([i for chunk in done for i in chunk.ids]).argsort()
    ids = torch.tensor([i for chunk in done for i in chunk.ids])[order]
    places = {int(row): place for place, row in enumerate(ready.dataset.ids.tolist())}
    clean = torch.cat([chunk.clean for chunk in done])[order]
    tables = [
        _search(number, search, [chunk.found[number] for chunk in done], order)
        for number, search in enumerate(searches)
    ]
    norms = {
        threat.norm: _norm(threat.norm, threat.eps, done, order, tables, assessment.union_only)
        for threat in assessment.threats
    }
    costs = [chunk.cost for chunk in done] + [f.cost for chunk in done for f in chunk.found]
    warnings = [text for chunk in done for text in chunk.signs.values()]
    for threat in assessment.threats:
        own = [number for number, s in enumerate(searches) if s.group == threat.norm]
        attacks = [searches[number].attack for number in own]
        counts = [tables[number]["fooled"] for number in own]
        warnings += [f"{threat.norm}: {sign.text}" for sign in black_box(attacks, counts)]
    union = torch.cat([chunk.alive(None) for chunk in done])[order]
    unseen = [
        {"attack": one.attack.label, "norm": one.threat.norm}
        | _norm(one.group, one.threat.eps, done, order, tables, False)
        for one in assessment.unseen_attacks
    ]
    whole: int = len(getattr(ready.splits, assessment.split))
    return {
        "format": FORMAT,
        "model": {**SCHEMA.to_tree(assessment.model), **ready.opened.described},
        "data": {
            **SCHEMA.to_tree(assessment.data),
            "split": assessment.split,
            "classes": list(ready.splits.classes),
            "outputs": list(ready.outputs),
        },
        "images": len(ids),
        "images_in_split": whole,
        "seed": assessment.seed,
        "attacks": SCHEMA.to_tree(assessment.attacks),
        "search_dtype": assessment.search_dtype,
        "batch_size": assessment.batch_size,
        "chunk": assessment.chunk,
        "clean": accuracy_of(clean),
        "norms": norms,
        "union": accuracy_of(union),
        "unseen": together(unseen, union),
        "lost": sum(table["lost"] for table in tables),
        "cost": asdict(total(costs)),
        "seconds": sum(found.seconds for chunk in done for found in chunk.found),
        "warnings": warnings,
        "notes": [*ready.opened.notes, *([assessment.note] if assessment.note else [])],
        "ids": ids.tolist(),
        "names": [ready.dataset.name(places[int(i)]) for i in ids.tolist()],
        "labels": ready.dataset.labels[[places[int(i)] for i in ids.tolist()]].tolist(),
        "environment": environment(ready.device, torch.get_num_threads()),
        "identity": ready.found,
    }


def _search(number: int, search: Search, found: Sequence[Found], order: Tensor) -> dict[str, Any]:
    """One search over all chunks; `flags` are the images that it fooled."""
    flags = torch.cat([part.fooled for part in found])[order]
    return {
        "norm": search.group,
        "part": search.label,
        "attack": SCHEMA.to_tree(search.attack),
        "attacked": sum(part.attacked for part in found),
        "fooled": int(flags.sum()),
        "lost": sum(part.lost for part in found),
        "cost": asdict(total([part.cost for part in found])),
        "seconds": sum(part.seconds for part in found),
        "notes": list(dict.fromkeys(note for part in found for note in part.notes)),
        "fooled_flags": to_text(flags),
    }


def _norm(  # noqa: PLR0913 - what a norm's entry is made of
    norm: str,
    eps: float,
    done: Sequence[Chunk],
    order: Tensor,
    tables: list[dict[str, Any]],
    union_only: bool,
) -> dict[str, Any]:
    """One norm: its searches, and the accuracy against all of them; null with union_only."""
    own = [table for table in tables if table["norm"] == norm]
    robust = torch.cat([chunk.alive(norm) for chunk in done])[order]
    searches = [{k: v for k, v in table.items() if k != "norm"} for table in own]
    return {"eps": eps, "robust": None if union_only else accuracy_of(robust), "searches": searches}


def write_report(
    folder: Path, report: dict[str, Any], worker: Worker, done: Sequence[Chunk]
) -> None:
    """Write evaluation.json, and where they are asked for the images before it."""
    if worker.assessment.save_adversarial:
        _write_images(folder / IMAGES, worker, done)
    write_json(folder / REPORT, report)


def _write_images(path: Path, worker: Worker, done: Sequence[Chunk]) -> None:
    """`ids`, `labels`, and norm -> images in the same order; what nothing fooled is as it was."""
    norms = worker.assessment.norm
    parts: dict[str, list[Tensor]] = {norm: [] for norm in norms}
    start = 0
    for chunk in done:
        x = worker.dataset.batch(torch.arange(start, start + len(chunk.ids))).x
        start += len(chunk.ids)
        for norm, images in worker.store.images(chunk, x, norms).items():
            parts[norm].append(images)
    order = worker.dataset.ids.argsort()
    tensors = {norm: torch.cat(images)[order] for norm, images in parts.items()}
    tensors |= {"ids": worker.dataset.ids[order], "labels": worker.dataset.labels[order]}
    write_tensors(path, tensors, {"roli_fast": json.dumps({"norms": list(norms)})})


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
