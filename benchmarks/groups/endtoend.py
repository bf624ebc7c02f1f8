"""Images a second of `python -m roli_fast.train`, whole: data, attack, update, validation apart.

Every candidate is a run of its own in a process of its own, again in each round.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.report import Options, Report

BASE = ["--data", "digits", "--source", "null", "--methods", "roli"]
NETWORK = [
    *("--model.name", "vit_tiny_patch16_224", "--model.options.img_size", "32"),
    *("--model.options.patch_size", "4", "--model.options.embed_dim", "96"),
    *("--model.options.num_heads", "3", "--model.options.depth", "4"),
    *("--data.image_size", "32", "--probe.epochs", "1", "--finetune.epochs", "1"),
    *("--probe.warmup_epochs", "0", "--finetune.warmup_epochs", "0"),
]
QUICK = [
    *("--model.options.depth", "1", "--model.options.embed_dim", "24", "--data.max_per_class", "8"),
    *("--model.options.num_heads", "1", "--model.options.patch_size", "8"),
]
CANDIDATES: dict[str, list[str]] = {
    "fp32": [],
    "bf16": ["--probe.engine.dtype", "bfloat16", "--finetune.engine.dtype", "bfloat16"],
}
ROUNDS = 2
WAITING = "data_wait_share"
"""What metrics.jsonl calls the share of an epoch without data, where it has it."""


def run(report: Report) -> None:
    """Rounds of whole runs."""
    options = report.options
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in CANDIDATES}
    notes: dict[str, str] = {}
    for _ in range(1 if options.quick else ROUNDS):
        for name, flags in CANDIDATES.items():
            if name in notes:
                continue
            try:
                found[name].append(trained(flags, options))
            except RuntimeError as error:
                notes[name] = str(error)
    for name, runs in found.items():
        if name in notes:
            report.add_row({"case": "digits", "name": name, "note": notes[name]})
            continue
        for stage in runs[0]:
            values: dict[str, Any] = {
                key: statistics.median(one[stage][key] for one in runs) for key in runs[0][stage]
            }
            where = {"case": f"digits, {stage}", "name": name, "runs": len(runs)}
            report.add_row(where | values)
    shares = [row["waiting"] for row in report.rows if "waiting" in row]
    what = "share of a step that waits for data, largest"
    report.target(what, max(shares, default=None), at_most=0.03)
    report.case |= {"flags": BASE + NETWORK + (QUICK if options.quick else [])}


def trained(flags: list[str], options: Options) -> dict[str, dict[str, float]]:
    """Stage -> images/s, and the share of waiting where the run records it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "roli_fast.train", *BASE, *NETWORK]
        command += QUICK if options.quick else []
        command += [*flags, "--run_dir", f"{folder}/run", "--device", options.device]
        command += ["--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our module
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
            raise RuntimeError(f"did not run: {reason[:150]}")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    stages: dict[str, dict[str, float]] = {}
    for record in map(json.loads, lines):
        values = {"images_per_second": record["train_images_per_second"]}
        if WAITING in record:
            values["waiting"] = record[WAITING]
        stages[record["stage"]] = values
    return stages


CASES = {"all": run}
