"""What results depend on besides their configuration: versions, machine, kernels."""

import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from roli_fast.ops import backend

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
        "packages": {name: _version(name) for name in PACKAGES},
        "ops": {"linf_step_": backend("linf_step_", device, torch.float32)._asdict()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def hash_text(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def hash_samples(samples: Iterable[tuple[str, int]]) -> str:
    """One hash for the names and labels of samples, in order."""
    return hash_text("\n".join(f"{name}\t{label}" for name, label in samples))
