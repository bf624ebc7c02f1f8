"""What is aimed at on a GPU: ViT-B/16 at 224, PGD-7. On a machine without one nothing is measured,
and the targets stand in the table as such.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from groups import pgd, train
from groups.lora import low_rank
from groups.pgd import BFLOAT16, quick
from harness import ours, peers
from harness.networks import images, network
from harness.report import Report
from harness.timing import Call, Plan, measure, warm
from op_cases import linf

NETWORK, BATCH, STEPS = "vit_base_patch16_224", 64, 7
PLAN = Plan(least=5, most=15, budget=10)
LIMITS = {
    "fused step, share of the copy's bandwidth": {"at_least": 0.9},
    "attack step with LoRA over the base model's": {"at_most": 1.02},
    "PGD-7 in bf16, share of the bf16 GEMM's rate": {"at_least": 0.5},
    "adversarial LoRA training in bf16, times as fast as RoLI's loop": {"at_least": 6.0},
    "the same over RoLI's loop on clean images": {"at_most": 1.0},
    "small network through the graph, times as fast as eager": {"at_least": 3.0},
}


@dataclass
class Found:
    """The measured values, by target."""

    report: Report
    values: dict[str, float | None]

    def keep(self, place: int, value: float | None) -> None:
        """The value of the target at `place` in `LIMITS`."""
        self.values[list(LIMITS)[place]] = value


def run(report: Report) -> None:
    """Measure where there is a device; the targets either way."""
    found = Found(report, {})
    if report.options.device == "cuda":
        measure_all(found)
    else:
        report.add_row({"case": "ViT-B/16, PGD-7", "name": "-", "note": "needs a CUDA device"})
    for what, limit in LIMITS.items():
        report.target(what, found.values.get(what), **limit)


def measure_all(found: Found) -> None:
    """One part after another."""
    for part in (fused_step, lora_attack, roofline, lora_training, graph):
        part(found)
        if found.report.options.device == "cuda":
            torch.cuda.empty_cache()


def interleaved(
    found: Found, case: str, calls: dict[str, Call], base: str, plan: Plan = PLAN
) -> Any:
    """Warm up, measure, add the rows."""
    options = found.report.options
    repeats = warm(calls, options.device)
    times = measure(calls, quick(plan, options), options.device, repeats)
    found.report.add(case, times, base, {})
    return times


def fused_step(found: Found) -> None:
    """PGD's step beside copies that move the same bytes."""
    options = found.report.options
    shape = (2, 3, 16, 16) if options.quick else (256, 3, 224, 224)
    calls = linf.candidates(shape, torch.float32, options.device)
    calls = {name: calls[name] for name in ("native", "copy")}
    times = interleaved(found, "linf_step_ fp32", calls, "native", Plan(most=41, budget=5))
    found.keep(0, times.ratio("copy", "native"))


def lora_attack(found: Found) -> None:
    """The attack with LoRA on every linear layer, merged, and without it."""
    options = found.report.options
    x, y = images(NETWORK, 2 if options.quick else BATCH, options)
    models: dict[str, nn.Module] = {
        "base": network(NETWORK, options),
        "LoRA": low_rank(options, NETWORK, 0.0),
    }
    calls: dict[str, Call] = {}
    for name, model in models.items():
        attack = ours.pgd(model, STEPS, BFLOAT16)
        calls[name] = lambda attack=attack: attack(x, y)
    times = interleaved(found, "attack, LoRA merged, bf16", calls, "base")
    found.keep(1, times.ratio("LoRA", "base"))


def roofline(found: Found) -> None:
    """PGD-7 beside the libraries, and a matrix product."""
    names = ("ours fp32", "ours bf16", "torchattacks", "RoLI's loop")
    case = pgd.Case("vit_base b64", NETWORK, BATCH, PLAN, steps=STEPS, names=names)
    pgd.one(found.report, case)
    rows = {row["name"]: row for row in found.report.rows if row["case"] == case.name}
    found.keep(2, rows["ours bf16"].get("roofline"))


def lora_training(found: Found) -> None:
    """Adversarial LoRA training; everything else trains in the row below, without a target."""
    for method in ("lora", "full"):
        case = train.Case(method, network=NETWORK, batch=BATCH, steps=STEPS, plan=PLAN)
        times = train.one(found.report, case)
        if method == "lora":
            found.keep(3, times.ratio("RoLI's loop", "ours bf16"))
            found.keep(4, times.ratio("ours bf16", "RoLI's loop, clean"))


def graph(found: Found) -> None:
    """PGD-10 on a network whose launches take longer than its work."""
    options = found.report.options
    x, y = images("cnn", 64, options)
    calls: dict[str, Call] = {}
    try:
        for name, on in (("eager", False), ("graph", True)):
            attack = ours.pgd(network("cnn", options), 10, {"cuda_graph": on})
            calls[name] = lambda attack=attack: attack(x, y)
    except peers.Missing as reason:
        found.report.add_row({"case": "cnn b64, graph", "name": "graph", "note": str(reason)})
        return
    times = interleaved(found, "cnn b64, graph", calls, "eager")
    found.keep(5, times.ratio("eager", "graph"))
