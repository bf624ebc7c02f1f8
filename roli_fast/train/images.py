"""The images that a run began with: a resume finds the same ones, or tells what is gone."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from roli_fast.data import ImageDataset, Splits
from roli_fast.data.pixels import FilePixels
from roli_fast.data.source import SPLITS
from roli_fast.errors import RunDirectoryError
from roli_fast.files import naming, read_json, write_bytes, write_json
from roli_fast.running.environment import hash_samples, hash_text

logger = logging.getLogger(__name__)

IMAGES = "images.json"
"""In the folder: the files that the run began with, where its images are files."""


def all_parts(splits: Mapping[str, Splits | None]) -> dict[str, ImageDataset]:
    """Every split by its name: "data train", "data val" and so on."""
    return {
        f"{name} {part}": getattr(found, part)
        for name, found in splits.items()
        for part in (SPLITS if found else ())
    }


def record_images(
    folder: Path, splits: Mapping[str, Splits | None], hashes: Mapping[str, Sequence[str]]
) -> None:
    """Write which files a run begins with: paths of all rows, and (row, label, hash) by split."""
    tree: dict[str, Any] = {}
    for name, dataset in all_parts(splits).items():
        if isinstance(dataset.pixels, FilePixels):
            source, part = name.split()
            rows = zip(dataset.ids.tolist(), dataset.labels.tolist(), hashes[name], strict=True)
            tree.setdefault(source, {"paths": dataset.pixels.paths})[part] = list(rows)
    if tree:
        write_bytes(folder / IMAGES, json.dumps(tree).encode())


def as_begun(
    folder: Path, splits: Mapping[str, Splits | None]
) -> tuple[dict[str, Splits | None], dict[str, list[int]]]:
    """The splits that the run in `folder` began with, less what was taken out of the data since.

    Rows, which draws depend on, and cuts are those of the beginning, although there are fewer
    files. Where others came too, or nothing is gone, the splits are given back as they are.

    Returns:
        The splits; and "data" or "source" -> the rows of test images that are gone.

    Raises:
        RunDirectoryError: the run has used an image that is gone.
    """
    out, dropped, saved = dict(splits), {}, _read(folder)
    tested = any(folder.glob("seed-*/*/test.json"))
    for name, found in splits.items():
        if not found or name not in saved:
            continue
        pixels, tree = found.train.pixels, saved[name]
        if not isinstance(pixels, FilePixels):
            continue
        paths, here = tree["paths"], dict(zip(pixels.paths, pixels.class_names, strict=True))
        gone = {row for row, path in enumerate(paths) if path not in here}
        if not gone or len(here) + len(gone) > len(paths):
            continue
        classes = [here.get(path, "") for path in paths]
        pixels = replace(pixels, paths=tuple(paths), class_names=tuple(classes))
        parts = {}
        for part in SPLITS:
            rows = [row for row, *_ in tree[part]]
            lost = [row for row in rows if row in gone]
            if lost and (part != "test" or tested and name == "data"):
                names = ", ".join(paths[row] for row in lost[:5])
                raise RunDirectoryError(
                    f"'{folder}' has used {len(lost)} images of {name} {part} that are gone: "
                    f"{names}. Put them back, or start a new run."
                )
            if lost:
                dropped[name] = lost
            left = [row for row in rows if row not in gone]
            ids, labels = (
                torch.tensor(values, dtype=torch.int64)
                for values in (left, [found.classes.index(classes[row]) for row in left])
            )
            parts[part] = replace(getattr(found, part), pixels=pixels, ids=ids, labels=labels)
        out[name] = Splits(**parts, classes=found.classes)
    return out, dropped


def leave_out(folder: Path, dropped: Mapping[str, list[int]]) -> None:
    """Take rows of `as_begun` out of what the run in `folder` began with."""
    if not dropped:
        return
    saved = _read(folder)
    recorded = folder / "environment.json"
    with naming(recorded, RunDirectoryError, "run_dir", "what roli_fast.train recorded"):
        facts = read_json(recorded)
        facts["identity"] = dict(facts["identity"])
    for name, rows in dropped.items():
        paths, gone = saved[name]["paths"], set(rows)
        left = saved[name]["test"] = [one for one in saved[name]["test"] if one[0] not in gone]
        facts["identity"] |= {
            f"{name} test images": hash_samples((paths[row], label) for row, label, _ in left),
            f"{name} test pixels": hash_text("\n".join(content for *_, content in left)),
        }
        logger.warning(
            "%s test images of %s are gone since the run began, which had not used them: "
            "it goes on without %s",
            len(rows),
            name,
            ", ".join(paths[row] for row in rows[:5]),
        )
    write_json(folder / "environment.json", facts)
    write_bytes(folder / IMAGES, json.dumps(saved).encode())


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """What `record_images` wrote; nothing where there is no such file."""
    path = folder / IMAGES
    if not path.is_file():
        return {}
    fix = "Put the file back, or start a new run."
    with naming(path, RunDirectoryError, "run_dir", "the images that the run began with", fix):
        return {
            name: {"paths": list(tree["paths"])}
            | {part: [(int(row), int(y), str(h)) for row, y, h in tree[part]] for part in SPLITS}
            for name, tree in read_json(path).items()
        }
