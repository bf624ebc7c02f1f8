"""Updates for several norms beside adversarial training in one, on a small ResNet.

An update of E-AT is one in linf or in l1.
"""

from groups.pgd import quick
from harness import ours
from harness.networks import images, network
from harness.report import Report
from harness.timing import Call, Plan, measure
from roli_fast import peft
from roli_fast.attacks import MultiAPGD
from roli_fast.threat import ThreatModel
from roli_fast.train.objectives import Objective
from roli_fast.train.objectives.ramp import RAMP

THREAT = ThreatModel("linf", 8 / 255, other_norms=("l1",), other_eps=(12.0,))
NARROW = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)}


def run(report: Report) -> None:
    """A row for each objective."""
    options = report.options
    batch, steps = (2, 2) if options.quick else (128, 10)
    x, y = images("resnet18", batch, options)

    def update(norms: tuple[str, ...], objective: Objective | None = None) -> Call:
        model = network("resnet18", options, **NARROW)
        attack = MultiAPGD(norms=norms, steps=steps).under(THREAT)
        return ours.training(model, x, y, peft.Full(), attack, objective, passes={})

    calls = {
        "linf": update(("linf",)),
        "l1": update(("l1",)),
        "MAX": update(("linf", "l1")),
        "RAMP": update(("linf", "l1"), RAMP(source="linf", target="l1")),
    }
    for call in calls.values():
        call()
    times = measure(calls, quick(Plan(least=5, budget=60), options), options.device)
    report.add("resnet18", times, "linf", {})
    report.case["resnet18"] = {"batch": batch, "steps": steps, **NARROW}


CASES = {"resnet18": run}
