"""Peak memory of an attack and of a training step on ViT-S, each in a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from groups import pgd, train
from harness import peers, work
from harness.networks import images, network
from harness.report import Options, Report
from harness.timing import Call

NETWORK, BATCH, STEPS = "vit_small_patch16_224", 8, 2
ATTACKS = ("ours fp32", "ours bf16", "torchattacks", "foolbox", "ART", "RoLI's loop")
UPDATES = ("ours fp32", "ours bf16", "RoLI's loop", "PEFT")
BENCH = Path(__file__).resolve().parent.parent / "bench.py"


def makers(options: Options) -> dict[str, dict[str, Callable[[], Call]]]:
    """Case -> name -> what builds the candidate."""
    x, y = images(NETWORK, 2 if options.quick else BATCH, options)

    def attack(name: str) -> Call:
        run = pgd.CANDIDATES[name](network(NETWORK, options), STEPS)
        return lambda: run(x, y)

    names = ATTACKS[:2] if options.quick else ATTACKS  # a process each
    made = {"attack": {name: lambda name=name: attack(name) for name in names}}
    for method in () if options.quick else ("lora", "full"):
        case = train.Case(method, network=NETWORK, batch=BATCH, steps=STEPS, names=UPDATES)
        made[f"update, {method}"] = train.makers(case, options)
    return made


def run(report: Report) -> None:
    """All cases."""
    for case, candidates in makers(report.options).items():
        for name in candidates:
            if report.options.only in case:
                report.add_row({"case": case, "name": name, **peak(report.options, case, name)})
    report.case |= {"network": NETWORK, "batch": BATCH, "steps": STEPS}
    report.save()


def peak(options: Options, case: str, name: str) -> dict[str, Any]:
    """The row's values; on a CPU from another process, whose memory has never been larger."""
    if options.device == "cuda":
        torch.cuda.empty_cache()
        try:
            found = work.peak_mb(makers(options)[case][name], "cuda")
        except peers.Missing as reason:
            return {"note": str(reason)}
        return {"peak_mb": round(found, 1)}
    command = [sys.executable, str(BENCH), "memory", "--device", "cpu", "--alone", case, name]
    command += ["--threads", str(options.threads)] + ["--quick"] * options.quick
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own file
    if done.returncode:
        return {"note": f"failed: {done.stderr.strip().splitlines()[-1]}"}
    last = done.stdout.strip().splitlines()[-1]
    try:
        return {"peak_mb": round(float(last), 1)}
    except ValueError:
        return {"note": last}


def alone(options: Options, case: str, name: str) -> str:
    """What the other process prints: MB, or why there are none."""
    imports = {"PEFT": "peft", "foolbox": "foolbox", "ART": "art", "torchattacks": "torchattacks"}
    if name in imports:
        try:
            peers.library(imports[name], imports[name])  # its own size is not the model's
        except peers.Missing as reason:
            return str(reason)
    try:
        return str(work.peak_mb(makers(options)[case][name], "cpu"))
    except peers.Missing as reason:
        return str(reason)
