"""How the time of an attack grows with batch, resolution, steps and depth of a small ViT.

All points of an axis are measured in the same rounds; `times_base` is over the first of them.
"""

from functools import partial
from itertools import product
from typing import Any

from groups.pgd import BFLOAT16, quick
from harness import ours
from harness.networks import images, network
from harness.report import Options, Report
from harness.timing import Call, Plan, measure

NETWORK = "vit_tiny_patch16_224"
START = {"batch": 4, "resolution": 96, "steps": 4, "depth": 6}
AXES = {
    "batch": (1, 2, 4, 8, 16, 32),
    "resolution": (32, 64, 96, 128, 192),
    "steps": (1, 2, 4, 8, 16),
    "depth": (1, 2, 4, 8, 12),
}
QUICK = {"batch": (1, 2), "resolution": (32, 64), "steps": (1, 2), "depth": (1, 2)}
PRECISIONS: dict[str, ours.Passes] = {"fp32": {}, "bf16": BFLOAT16}
PLAN = Plan(most=9, budget=8)


def run(axis: str, precision: str, report: Report) -> None:
    """All points of an axis in one precision."""
    options = report.options
    values = (QUICK if options.quick else AXES)[axis]
    calls: dict[str, Call] = {}
    for value in values:
        calls[f"{axis} {value}"] = call({**START, axis: value}, PRECISIONS[precision], options)
        calls[f"{axis} {value}"]()
    times = measure(calls, quick(PLAN, options), options.device)
    columns: dict[str, dict[str, Any]] = {f"{axis} {value}": {"value": value} for value in values}
    report.add(f"{axis}, {precision}", times, f"{axis} {values[0]}", columns)
    report.case |= {"network": NETWORK, "start": START}


def call(at: dict[str, int], passes: ours.Passes, options: Options) -> Call:
    """The attack at one point."""
    size = 32 if options.quick else at["resolution"]
    batch = 2 if options.quick else at["batch"]
    changes = {"img_size": size, "depth": 1 if options.quick else at["depth"]}
    model = network(NETWORK, options, **changes)
    x, y = images(NETWORK, batch, options, size)
    attack = ours.pgd(model, at["steps"], passes)
    return lambda: attack(x, y)


CASES = {
    f"{axis}, {precision}": partial(run, axis, precision)
    for axis, precision in product(AXES, PRECISIONS)
}
