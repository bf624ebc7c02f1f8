"""Training runs as processes of their own, for the programs beside this file."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed command line; `flags` holds what follows `--`, for roli_fast.train."""
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    return parser.parse_args(own, argparse.Namespace(flags=flags))


def summary(folder: Path, flags: list[str]) -> tuple[dict[str, Any], float]:
    """Train into `folder`, or go on there; its summary, and the peak memory of this process in MB.

    Raises:
        SystemExit: the training failed.
    """
    command = [sys.executable, "-m", "roli_fast.train", "--run_dir", str(folder)]
    command += ["--resume"] if (folder / "config.yaml").exists() else flags
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own module
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise SystemExit(f"{folder.name}: training ended with status {code}")
    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found, usage.ru_maxrss / 1024


def percent(values: list[float]) -> str:
    """Mean of accuracies, with the standard deviation of several, in percent."""
    mean = 100 * statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}"
