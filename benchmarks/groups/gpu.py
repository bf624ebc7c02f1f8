"""What is aimed at on a GPU: ViT-B/16 at 224, PGD-7. On a machine without one nothing is measured,
and the targets stand in the table as such.
"""

from collections.abc import Callable
from functools import partial

import torch

from groups import pgd, train
from groups.lora import low_rank
from groups.pgd import BFLOAT16, quick
from harness import ours
from harness.networks import images, network
from harness.report import Report
from harness.timing import Call, Plan, Times, measure, warm
from op_cases import linf

NETWORK, BATCH, STEPS = "vit_base_patch16_224", 64, 7
PLAN = Plan(least=5, most=15, budget=10)

Part = Callable[[Report], list[float | None]]
"""Measures, and returns the values of its targets."""


def interleaved(
    report: Report, case: str, calls: dict[str, Call], base: str, plan: Plan = PLAN
) -> Times:
    """Warm up, measure, add the rows."""
    options = report.options
    repeats = warm(calls, options.device)
    times = measure(calls, quick(plan, options), options.device, repeats)
    report.add(case, times, base, {})
    return times


def fused_step(report: Report) -> list[float | None]:
    """PGD's step beside copies that move the same bytes."""
    options = report.options
    shape = (2, 3, 16, 16) if options.quick else (256, 3, 224, 224)
    calls = linf.candidates(shape, torch.float32, options.device)
    calls = {name: calls[name] for name in ("native", "copy")}
    times = interleaved(report, "linf_step_ fp32", calls, "native", Plan(most=41, budget=5))
    return [times.ratio("copy", "native")]


def lora_attack(report: Report) -> list[float | None]:
    """The attack with LoRA on every linear layer, merged, and without it."""
    options = report.options
    x, y = images(NETWORK, 2 if options.quick else BATCH, options)
    models = {"base": network(NETWORK, options), "LoRA": low_rank(options, NETWORK, 0.0)}
    attacks = {name: ours.pgd(model, STEPS, BFLOAT16) for name, model in models.items()}
    calls: dict[str, Call] = {name: partial(attack, x, y) for name, attack in attacks.items()}
    return [interleaved(report, "attack, LoRA merged, bf16", calls, "base").ratio("LoRA", "base")]


def roofline(report: Report) -> list[float | None]:
    """PGD-7 beside the libraries, and a matrix product."""
    names = ("ours fp32", "ours bf16", "torchattacks", "RoLI's loop")
    case = pgd.Case("vit_base b64", NETWORK, BATCH, PLAN, steps=STEPS, names=names)
    pgd.one(report, case)
    rows = {row["name"]: row for row in report.rows if row["case"] == case.name}
    return [rows["ours bf16"].get("roofline")]


def training(method: str, report: Report) -> list[float | None]:
    """Adversarial training beside RoLI's loop, on attacked and on clean images."""
    case = train.Case(method, network=NETWORK, batch=BATCH, steps=STEPS, plan=PLAN)
    times = train.one(report, case)
    pairs = (("RoLI's loop", "ours bf16"), ("ours bf16", "RoLI's loop, clean"))
    return [times.ratio(*pair) for pair in pairs]


def compiled(report: Report) -> list[float | None]:
    """The same attack through torch.compile, which fuses norms, casts and GELU; compiling takes
    minutes, which no round counts. Tiny, nothing is compiled."""
    options = report.options
    x, y = images(NETWORK, 2 if options.quick else BATCH, options)
    on = {} if options.quick else {"compile": True}
    calls: dict[str, Call] = {
        name: partial(ours.pgd(network(NETWORK, options), STEPS, BFLOAT16 | passes), x, y)
        for name, passes in (("as it is", {}), ("compiled", on))
    }
    interleaved(report, "attack, compiled, bf16", calls, "as it is")
    return []


def graph(report: Report) -> list[float | None]:
    """PGD-10 on a network whose launches take longer than its work."""
    options = report.options
    x, y = images("cnn", 64, options)
    calls: dict[str, Call] = {
        name: partial(ours.pgd(network("cnn", options), 10, {"cuda_graph": on}), x, y)
        for name, on in (("eager", False), ("graph", True))
    }
    return [interleaved(report, "cnn b64, graph", calls, "eager").ratio("eager", "graph")]


LIMITS: dict[str, tuple[Part, dict[str, dict[str, float]]]] = {
    "fused step": (fused_step, {"fused step, share of the copy's bandwidth": {"at_least": 0.9}}),
    "LoRA attack": (
        lora_attack,
        {"attack step with LoRA over the base model's": {"at_most": 1.02}},
    ),
    "attack": (roofline, {"PGD-7 in bf16, share of the bf16 GEMM's rate": {"at_least": 0.5}}),
    "LoRA training": (
        partial(training, "lora"),
        {
            "adversarial LoRA training in bf16, times as fast as RoLI's loop": {"at_least": 6.0},
            "the same over RoLI's loop on clean images": {"at_most": 1.0},
        },
    ),
    "compiled": (compiled, {}),
    "full training": (partial(training, "full"), {}),
    "graph": (
        graph,
        {"small network through the graph, times as fast as eager": {"at_least": 3.0}},
    ),
}
"""Case -> what measures it, and its targets."""


def run(case: str, report: Report) -> None:
    """Measure where there is a device; the targets either way."""
    part, limits = LIMITS[case]
    found: list[float | None] = [None] * len(limits)
    if report.options.device == "cuda" or report.options.quick:
        found = part(report)
    else:
        report.add_row({"case": f"ViT-B/16, {case}", "name": "-", "note": "needs a CUDA device"})
    for (what, limit), value in zip(limits.items(), found, strict=False):
        report.target(what, value, **limit)
    if report.options.device == "cuda":
        torch.cuda.empty_cache()


CASES = {case: partial(run, case) for case in LIMITS}
