"""Interleaved timing, for the programs beside this file.

Every round times each candidate once, so that a slow moment of the machine hits all of them.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import roli_fast
from roli_fast import ops

SHORTEST = 2e-3  # seconds; quicker calls are repeated up to this before the clock is read
Call = Callable[[], object]


def seconds(call: Call, repeats: int, device: str) -> float:
    """Seconds for one call."""
    synchronize = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - started) / repeats


def measure(calls: dict[str, Call], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every candidate in every round."""
    repeats = {}
    for name, call in calls.items():
        seconds(call, 3, device)  # compile, touch the memory
        repeats[name] = max(1, round(SHORTEST / seconds(call, 3, device)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats[name], device))
    return times


def summary(times: dict[str, list[float]], targets: dict[str, float]) -> dict[str, object]:
    """Medians in microseconds, and how many times slower than native each candidate is."""
    ratios = {
        name: statistics.median(t / n for t, n in zip(values, times["native"], strict=True))
        for name, values in times.items()
    }
    return {
        "median_us": {n: round(statistics.median(v) * 1e6, 2) for n, v in times.items()},
        "quartiles_us": {
            n: [round(q * 1e6, 2) for q in statistics.quantiles(v, n=4)[::2]]
            for n, v in times.items()
        },
        "times_native": {n: round(ratio, 2) for n, ratio in ratios.items()},
        "targets": {n: round(target, 3) for n, target in targets.items()},
        "met": all(ratios[name] >= target for name, target in targets.items()),
    }


def machine(device: str, threads: int) -> dict[str, object]:
    """Where and with what the numbers were taken."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "roli_fast": getattr(roli_fast, "__version__", "source tree"),
        "build": ops.build_info(),
    }
