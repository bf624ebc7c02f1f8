"""PGD-10 in linf on five networks: ours beside the libraries and RoLI's own loop.

All see random weights and the same batch, each on a copy of the network of its own. Roofline: the
FLOPs of k forwards and k input-backwards, which is all that PGD-k needs, over the candidate's time,
as a share of a large matrix product's rate in the same dtype and in the same rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness import ours, peers, plain, work
from harness.networks import images, network
from harness.report import Options, Report
from harness.timing import Call, Plan, Times, measure

Make = Callable[[nn.Module, int], peers.Attack]
"""(model, steps) -> (x, y) -> whatever."""

BFLOAT16 = {"dtype": torch.bfloat16}
CANDIDATES: dict[str, Make] = {
    "ours fp32": lambda model, steps: ours.pgd(model, steps, {}),
    "ours bf16": lambda model, steps: ours.pgd(model, steps, BFLOAT16),
    "torchattacks": peers.torchattacks,
    "torchattacks frozen": lambda model, steps: peers.torchattacks(model, steps, frozen=True),
    "foolbox": peers.foolbox,
    "ART": peers.art,
    "RoLI's loop": lambda model, steps: lambda x, y: plain.attack(model, x, y, steps),
}
SPEED = {"foolbox": 1.35, "ART": 1.35, "torchattacks": 1 / 1.03}
"""Ours in fp32 is at least so many times as fast."""


@dataclass(frozen=True)
class Case:
    """One network: `bf16`, how many times as fast as torchattacks; the rest likewise by target."""

    name: str
    network: str
    batch: int
    plan: Plan
    steps: int = 10
    bf16: float | None = None
    roofline: float | None = None
    activations: bool = False
    names: tuple[str, ...] = field(default=tuple(CANDIDATES))


NETWORKS = [
    Case("cnn b64", "cnn", 64, Plan(most=25, budget=15)),
    Case("resnet18 b8", "resnet18", 8, Plan(budget=50)),
    Case("vit_tiny b8", "vit_tiny_patch16_224", 8, Plan(budget=60), bf16=2.5, activations=True),
    Case(
        "vit_small b8",
        "vit_small_patch16_224",
        8,
        Plan(budget=150),
        bf16=2.5,
        roofline=0.6,
        activations=True,
    ),
    Case("swin_tiny b4", "swin_tiny_patch4_window7_224", 4, Plan(budget=90), bf16=2.5),
]


def run(case: Case, report: Report) -> None:
    """Rows and targets of one network."""
    goals(report, case, one(report, case))


def one(report: Report, case: Case) -> Times:
    """Measure one network and add its rows."""
    options = report.options
    batch = 2 if options.quick else case.batch
    x, y = images(case.network, batch, options)
    calls: dict[str, Call] = {}
    columns: dict[str, dict[str, Any]] = {}
    for name in case.names:
        model = network(case.network, options)
        try:
            attack = CANDIDATES[name](model, case.steps)
            columns[name] = warmed(attack, model, x, y)
        except peers.Missing as reason:
            columns[name] = {"note": str(reason)}
            continue
        calls[name] = lambda attack=attack: attack(x, y)
    flops = {}
    for short, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        calls[f"GEMM {short}"], flops[f"GEMM {short}"] = work.gemm(
            dtype, options.device, options.quick
        )
    times = measure(calls, quick(case.plan, options), options.device)
    useful = case.steps * work.step_flops(network(case.network, options), x, y)
    for name in times.seconds:
        columns.setdefault(name, {})
        columns[name] |= rates(times, name, flops.get(name, useful), flops)
    activations(report, case, columns)
    report.add(case.name, times, "ours fp32", columns)
    report.case[case.name] = {"network": case.network, "batch": batch, "steps": case.steps}
    return times


def warmed(attack: peers.Attack, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The passes of one call; on a GPU of the whole batch, for which a graph may be captured."""
    counted = work.Passes()
    some = len(x) if x.is_cuda else 1
    with counted.of(model):
        attack(x[:some], y[:some])
    return {"forwards": counted.forwards, "backwards": counted.backwards}


def rates(times: Times, name: str, flops: int, gemms: dict[str, int]) -> dict[str, float]:
    """GFLOP/s, and what share of the product's that is, round by round."""
    found = {"gflops": float(f"{flops / (times.median(name) or 1) / 1e9:.4g}")}
    dtype = "GEMM bf16" if "bf16" in name else "GEMM fp32"
    ratio = times.ratio(dtype, name)
    if name not in gemms and ratio is not None:
        found["roofline"] = float(f"{ratio * flops / gemms[dtype]:.4g}")
    return found


def activations(report: Report, case: Case, columns: dict[str, dict[str, Any]]) -> None:
    """What one attack step keeps of a batch, and what it would keep with weights that train."""
    if not case.activations:
        return
    x, y = images(case.network, 2, report.options)
    model = network(case.network, report.options)
    with work.kept(model, x) as megabytes:
        nn.functional.cross_entropy(model(x.requires_grad_(True)), y)
        unfrozen = megabytes()
    x = x.detach()
    with ours.input_gradient(model, {}) as gradient, work.kept(model, x) as megabytes:
        gradient(x, y)
        frozen = megabytes()
    columns["ours fp32"]["activations_mb"] = round(frozen, 3)
    columns["RoLI's loop"]["activations_mb"] = round(unfrozen, 3)
    what = f"{case.name}: activations kept in a step, frozen over unfrozen (batch 2)"
    report.target(what, frozen / unfrozen, at_most=0.65)


def quick(plan: Plan, options: Options) -> Plan:
    """The plan, or hardly any rounds."""
    if options.quick:
        return Plan(2, 2, 0)
    return Plan(plan.least, plan.most, plan.budget * options.scale)


def goals(report: Report, case: Case, times: Times) -> None:
    """The issue's targets for this network."""
    for peer, least in SPEED.items():
        what = f"{case.name}: ours fp32, times as fast as {peer}"
        report.target(what, times.ratio(peer, "ours fp32"), at_least=least)
    if case.bf16:
        what = f"{case.name}: ours bf16, times as fast as torchattacks"
        report.target(what, times.ratio("torchattacks", "ours bf16"), at_least=case.bf16)
    if case.roofline:
        row = next(r for r in report.rows if (r["case"], r["name"]) == (case.name, "ours bf16"))
        what = f"{case.name}: ours bf16, share of the bf16 GEMM's rate"
        report.target(what, row.get("roofline"), at_least=case.roofline)


CASES = {case.name: partial(run, case) for case in NETWORKS}
