"""The folder of a run: never overwritten, and enough to resume and to repeat it."""

import datetime
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from roli_fast.errors import RunDirectoryError
from roli_fast.files import write_bytes, write_json
from roli_fast.ops import backend

PACKAGES = ("roli-fast", "torch", "torchvision", "timm", "numpy", "safetensors", "scikit-learn")


def default_run_dir(name: str) -> Path:
    """runs/<name>-<date>-<time>."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name}-{stamp}"


def open_run_dir(folder: Path, config: str, *, resume: bool) -> None:
    """Make a new run directory, or check the one to resume.

    Raises:
        RunDirectoryError: the folder has something in it and this is not a resume.
    """
    if resume:
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirectoryError(
            f"`--run_dir`: '{folder}' exists already and is never overwritten. Add --resume to "
            "continue that run, or name a new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "config.yaml", config.encode())


def write_environment(folder: Path, *, device: torch.device, threads: int) -> None:
    """Record versions, machine and kernels beside the results."""
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
        "linf_step_": str(backend("linf_step_", device, torch.float32)),
    }
    write_json(folder / "environment.json", facts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
