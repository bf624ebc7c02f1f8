"""Peak memory of an attack and of a training step on ViT-S, each in a process of its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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
IMPORTS = {"PEFT": "peft", "foolbox": "foolbox", "ART": "art", "torchattacks": "torchattacks"}
"""Candidate -> module, whose own size is not the model's."""


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
    """All cases; on a CPU from another process, whose memory has never been larger."""
    for case, candidates in makers(report.options).items():
        for name in candidates:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = process.submit(peak, report.options, case, name).result()
            report.add_row({"case": case, "name": name, **found})
    report.case |= {"network": NETWORK, "batch": BATCH, "steps": STEPS}


def peak(options: Options, case: str, name: str) -> dict[str, Any]:
    """The row's values."""
    torch.set_num_threads(options.threads)
    try:
        if name in IMPORTS:
            peers.library(IMPORTS[name], IMPORTS[name])
        return {"peak_mb": round(work.peak_mb(makers(options)[case][name], options.device), 1)}
    except peers.Missing as reason:
        return {"note": str(reason)}


CASES = {"all": run}
