"""What results depend on besides their configuration: versions, machine, kernels."""

import hashlib
import logging
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import torch

from roli_fast.ops import backend

logger = logging.getLogger(__name__)

PACKAGES = ("roli-fast", "torch", "torchvision", "timm", "numpy", "safetensors", "scikit-learn")


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Plain values for a report."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": threads,
        "device": str(device),
        "gpu": gpu,
        "packages": packages(),
        "ops": {"linf_step_": backend("linf_step_", device, torch.float32)._asdict()},
    }


def packages() -> dict[str, str | None]:
    """The versions of what results come from."""
    return {name: _version(name) for name in PACKAGES}


def say_what_changed(before: Mapping[str, str | None]) -> None:
    """Log which `packages` are others than `before`, at an earlier start of the same work."""
    here = packages()
    changed = [(name, was, here.get(name)) for name, was in before.items() if was != here.get(name)]
    if changed:
        text = "this began with other packages (%s): from here on the last digits may differ"
        logger.warning(text, ", ".join(f"{name} {was}, now {now}" for name, was, now in changed))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except Exception:  # not installed, or a damaged record of what is
        return None


def hash_text(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def hash_samples(samples: Iterable[tuple[str, int]]) -> str:
    """One hash for the names and labels of samples, in order."""
    return hash_text("\n".join(f"{name}\t{label}" for name, label in samples))
