"""What an evaluation's results depend on, so that a resume never mixes two."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roli_fast.data import ImageDataset
from roli_fast.errors import RoliFastError, RunDirectoryError
from roli_fast.evaluate.assessment import PLACE_FIELDS, Assessment, same_assessment
from roli_fast.evaluate.config import SCHEMA
from roli_fast.evaluate.state import FOLDER as CHUNKS
from roli_fast.evaluate.subject import Opened
from roli_fast.files import naming, read_json, write_json
from roli_fast.running.device import saved_threads
from roli_fast.running.environment import hash_samples, hash_text
from roli_fast.running.folder import CONFIG

FILE = "identity.json"
PARTS = ("configuration", "model", "images", "pixels")


def identity(
    assessment: Assessment,
    datasets: Mapping[str, ImageDataset],
    hashes: Mapping[str, Sequence[str]],
    opened: Opened,
) -> dict[str, Any]:
    """Hashes of what a resume must find unchanged, `hashes` of the images' contents among them;
    `key` is of all of them but those."""
    tree = {k: v for k, v in SCHEMA.to_tree(assessment).items() if k not in PLACE_FIELDS}
    for name in ("unseen", "classes"):  # evaluations that began before the field was there
        if not tree[name]:
            del tree[name]
    for field in ("data", "ood"):  # likewise
        if (tree[field] or {}).get("channels") == 3:
            del tree[field]["channels"]
    parts = datasets.values()
    rows = ((d.name(i), y) for d in parts for i, y in enumerate(d.labels.tolist()))
    found = {
        "configuration": hash_text(json.dumps(tree, sort_keys=True)),
        "model": opened.described["sha256"],
        "images": hash_samples(rows),
    }
    pixels = hash_text("\n".join(content for name in datasets for content in hashes[name]))
    return {**found, "key": hash_text(json.dumps(found, sort_keys=True)), "pixels": pixels}


def write_identity(folder: Path, found: dict[str, Any]) -> None:
    """Record it when an evaluation begins."""
    write_json(folder / FILE, found)


def only_begun(folder: Path, assessment: Assessment | None = None) -> bool:
    """Whether a process was killed there after it wrote the configuration (this one, where one is
    given) and before anything else."""
    if (folder / FILE).exists() or (folder / CHUNKS).exists():
        return False
    try:
        saved = SCHEMA.read(folder / CONFIG)
    except RoliFastError:
        return False
    return assessment is None or same_assessment(saved, assessment)


def check_same(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What was recorded.

    Raises:
        RunDirectoryError: nothing readable, or something else than `found`.
    """
    path = folder / FILE
    fix = "Nothing was changed. Leave out --resume, and name a new folder."
    with naming(path, RunDirectoryError, "--out", "a folder in which an evaluation began", fix):
        saved = read_json(path)
        # evaluations that began before pixels were recorded are known by names and labels
        was = {"pixels": found["pixels"], **saved}
        changed = [name for name in PARTS if was[name] != found[name]]
        if saved_threads(saved) is None:
            raise KeyError("threads")
    if changed:
        raise RunDirectoryError(
            f"`--out`: '{folder}' began with another {', another '.join(changed)}: its flags would "
            "be mixed with others. Put back what changed, or name a new folder."
        )
    return saved
