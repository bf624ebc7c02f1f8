"""The folder of a run: never overwritten, and enough to resume and to repeat it."""

import datetime
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from roli_fast.data import ImageDataset, Splits
from roli_fast.errors import RunDirectoryError, describe
from roli_fast.files import write_bytes, write_json
from roli_fast.ops import backend
from roli_fast.train.config import to_tree, to_yaml
from roli_fast.train.experiment import PLACE_FIELDS, Experiment
from roli_fast.train.run_lock import LOCK, RunLock

PACKAGES = ("roli-fast", "torch", "torchvision", "timm", "numpy", "safetensors", "scikit-learn")


def default_run_dir(name: str) -> Path:
    """runs/<name>-<date>-<time>."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name}-{stamp}"


def open_run_dir(folder: Path, experiment: Experiment, *, resume: bool) -> RunLock:
    """Make a new run directory, or check the one to resume.

    Returns:
        The lock on it, for the caller to release.

    Raises:
        RunDirectoryError: it cannot be made, has something in it and this is not a resume, or
            another process works in it.
    """
    try:
        if not resume:
            _check_empty(folder)
            folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        try:
            if not resume:
                _check_empty(folder)  # again: another process may have been here meanwhile
                write_bytes(folder / "config.yaml", to_yaml(experiment).encode())
            for left in folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
                left.unlink()
        except BaseException:
            lock.release()
            raise
        return lock
    except OSError as error:
        raise RunDirectoryError(
            describe("--run_dir", "a folder that can be made and written", f"'{folder}': {error}")
        ) from error


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(describe("--run_dir", "a folder", f"the file '{folder}'"))
    if folder.exists() and any(
        path.name != LOCK and not path.name.endswith(".tmp") for path in folder.iterdir()
    ):
        raise RunDirectoryError(
            f"`--run_dir`: '{folder}' exists already and is never overwritten. Add --resume to "
            "continue that run, or name a new folder."
        )


def identity(experiment: Experiment, splits: Mapping[str, Splits | None]) -> dict[str, str]:
    """Hashes of what a resumed run must find unchanged: the configuration, and every split."""
    tree = {k: v for k, v in to_tree(experiment).items() if k not in PLACE_FIELDS}
    out = {"configuration": _hash(json.dumps(tree, sort_keys=True))}
    for name, found in splits.items():
        for part in ("train", "val", "test") if found else ():
            dataset: ImageDataset = getattr(found, part)
            rows = (f"{dataset.name(i)}\t{y}" for i, y in enumerate(dataset.labels.tolist()))
            out[f"{name} {part} images"] = _hash("\n".join(rows))
    return out


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def saved_environment(folder: Path, found: Mapping[str, str]) -> dict[str, Any]:
    """What an earlier start of this run recorded; empty for a new one.

    Raises:
        RunDirectoryError: the configuration or the images are not those it began with.
    """
    path = folder / "environment.json"
    if not path.is_file():
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name, value in found.items() if saved["identity"].get(name) != value]
    if changed:
        raise RunDirectoryError(
            f"'{folder}' began with another {', another '.join(changed)}: its results would be "
            "mixed with others. Put back what changed, or start a new run."
        )
    return saved


def write_environment(
    folder: Path, *, device: torch.device, threads: int, found: Mapping[str, str]
) -> None:
    """Record versions, machine, kernels and what was run beside the results."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": threads,
        "device": str(device),
        "gpu": gpu,
        "packages": {name: _version(name) for name in PACKAGES},
        "ops": {"linf_step_": backend("linf_step_", device, torch.float32)._asdict()},
        "identity": dict(found),
    }
    write_json(folder / "environment.json", facts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
