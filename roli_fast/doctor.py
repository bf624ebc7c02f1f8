"""`python -m roli_fast.doctor`: what is installed, what was built, and which kernels run here."""

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from roli_fast import ops
from roli_fast.ops import native
from roli_fast.running.command import run_command

PACKAGES = ("roli-fast", "torch", "torchvision", "timm", "numpy")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SWITCHES = ("ROLI_FAST_BACKEND", "ROLI_FAST_REQUIRE_EXT", "OMP_NUM_THREADS")


def versions() -> Iterator[str]:
    """Python, the packages that matter, and CUDA as torch sees it."""
    yield f"python       {platform.python_version()} on {platform.platform()}"
    for name in PACKAGES:
        yield f"{name:12} {_version(name)}"
    yield f"cuda         torch was built for {torch.version.cuda or 'none'}; {_cuda_devices()}"
    threads = torch.get_num_threads()
    yield f"threads      {threads} of {os.cpu_count()} CPUs"
    for name in SWITCHES:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"


def build() -> Iterator[str]:
    """What the installation asked for, what came of it, and what the module says of itself."""
    record, info = native.state.record, ops.build_info()
    if record:
        failed = ", a build FAILED" if record["failed"] else ""
        yield f"asked for {record['requested']}, built {record['built']}{failed}"
        yield from (f"reason: {reason}" for reason in record["reasons"])
    if not info:
        yield f"no _C: {native.state.obstacle}"
        return
    path = Path(native.state.module.__file__)
    yield f"module       {path.name}, {path.stat().st_size / 2**20:.1f} MiB"
    yield f"compiler     {info['compiler']} {info['flags']}"
    yield f"CPU          runs at {info['cpu_level']} (built for: {info['cpu_dispatch']})"
    yield f"OpenMP       {info['openmp'] or 'no: one thread'}"
    cuda = f"{info['cuda']} for {info['cuda_architectures']}" if info["cuda"] else "not built"
    yield f"CUDA         {cuda}"
    if info["cuda"]:
        driver = native.state.module.cuda_driver_version() or "none"
        yield f"             runtime {info['cuda_runtime']} linked in, driver {driver}"


def backends() -> Iterator[str]:
    """Which implementation each op takes, for each kind of device and dtype."""
    for op in native.OPS:
        for device in ("cpu", "cuda"):
            for dtype in DTYPES:
                chosen = ops.backend(op, device, dtype)
                why = f"  ({chosen.reason})" if chosen.reason else ""
                name = str(dtype).removeprefix("torch.")
                yield f"{op:16} {device:5} {name:9} {chosen.name}{why}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 1 if ROLI_FAST_REQUIRE_EXT is set and the module is missing."""
    about = "What is installed, what was built, and which kernels run here."
    argparse.ArgumentParser("python -m roli_fast.doctor", description=about).parse_args(arguments)
    for title, lines in (("versions", versions()), ("build", build()), ("backends", backends())):
        print(title)
        for line in lines:
            print(f"  {line}")
    if native.state.required and not ops.build_info():
        print(f"ROLI_FAST_REQUIRE_EXT is set and there is no _C: {native.state.obstacle}")
        return 1
    return 0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda_devices() -> str:
    if not torch.cuda.is_available():
        return "no device"
    names = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return ", ".join(names)


if __name__ == "__main__":
    run_command(main)
