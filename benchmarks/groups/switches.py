"""What each switch of the engine gives: an attack with it beside one without, PGD in five steps.

`SWITCHES` is a list to be added to: fields of `Engine` without and with the switch, on a network.
One that this version does not have, or that a device cannot take, is a row that says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from groups.lora import low_rank
from groups.pgd import BFLOAT16, quick
from harness import ours, peers, plain
from harness.networks import images, network
from harness.report import Options, Report
from harness.timing import Call, Plan, measure

STEPS = 5
PLAN = Plan(most=9, budget=15)
TINY, RESNET, SMALL_CNN = "vit_tiny_patch16_224", "resnet18", "cnn"


@dataclass(frozen=True)
class Switch:
    """`network` gets `batch` images, under an engine with the fields `off` and then `on`.

    `expected`: how many times as fast, by counting passes and bytes; shown beside what was found.
    """

    name: str
    network: str
    off: ours.Passes = field(default_factory=dict)
    on: ours.Passes = field(default_factory=dict)
    batch: int = 4
    expected: str = ""
    model: Callable[[str, Options], nn.Module] = network
    off_call: Callable[[nn.Module, Tensor, Tensor], Call] | None = None

    @property
    def case(self) -> str:
        """As the table shows it."""
        return f"{self.name}, {self.network.split('_patch')[0]}"


def weights_too(model: nn.Module, x: Tensor, y: Tensor) -> Call:
    """The attack with backward(), which computes the gradients of the weights as well."""

    def run() -> None:
        x_adv = (x + torch.empty_like(x).uniform_(-plain.EPS, plain.EPS)).clamp_(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_(True)
            nn.functional.cross_entropy(model(x_adv), y).backward()
            assert x_adv.grad is not None, "backward has just run"
            with torch.no_grad():
                moved = x_adv + plain.STEP_SIZE * x_adv.grad.sign()
                x_adv = torch.min(torch.max(moved, x - plain.EPS), x + plain.EPS).clamp_(0, 1)

    return run


def with_lora(name: str, options: Options) -> nn.Module:
    """LoRA on every linear layer."""
    return low_rank(options, name, 0.0)


SWITCHES = [
    Switch("input gradient only", TINY, off_call=weights_too, expected="1.5"),
    Switch("input gradient only", RESNET, off_call=weights_too, expected="1.5"),
    Switch("bf16", TINY, on=BFLOAT16, expected="2.5 to 4.5"),
    Switch("bf16", RESNET, on=BFLOAT16, expected="2.5 to 4.5"),
    Switch("LoRA merged", TINY, {"merge": False}, {"merge": True}, model=with_lora, expected="1.1"),
    Switch(
        "attention chosen, bf16",
        TINY,
        {**BFLOAT16, "attention": "fused"},
        {**BFLOAT16, "attention": "auto"},
        expected="1.4",
    ),
    Switch(
        "attention chosen, fp32",
        TINY,
        {"attention": "fused"},
        {"attention": "auto"},
        expected="1.0",
    ),
    Switch(
        "channels_last, fp32",
        RESNET,
        {"channels_last": False},
        {"channels_last": True},
        expected="0.9 to 1.2",
    ),
    Switch(
        "channels_last, bf16",
        RESNET,
        {**BFLOAT16, "channels_last": False},
        {**BFLOAT16, "channels_last": True},
        expected="1 to 1.3",
    ),
    Switch("folding", RESNET, {"fold": False}, {"fold": True}, expected="1.1"),
    Switch("folding", TINY, {"fold": False}, {"fold": True}, expected="1.01"),
    Switch(
        "CUDA graph",
        SMALL_CNN,
        {"cuda_graph": False},
        {"cuda_graph": True},
        batch=64,
        expected="3 on a GPU",
    ),
    Switch("compile", TINY, {"compile": False}, {"compile": True}, expected="1.0 to 1.2"),
]


def run(switch: Switch, report: Report) -> None:
    """The two rows of one switch."""
    options, case = report.options, switch.case
    if "cuda_graph" in switch.on and options.device != "cuda":
        report.add_row({"case": case, "name": "on", "note": "needs a CUDA device"})
        return
    if "compile" in switch.on and options.quick:
        report.add_row({"case": case, "name": "on", "note": "compiles for a minute: not quick"})
        return
    x, y = images(switch.network, 2 if options.quick else switch.batch, options)
    calls: dict[str, Call] = {}
    try:
        for name, passes in (("off", switch.off), ("on", switch.on)):
            model = switch.model(switch.network, options)
            if name == "off" and switch.off_call is not None:
                calls[name] = switch.off_call(model, x, y)
            else:
                attack = ours.pgd(model, STEPS, passes)
                calls[name] = lambda attack=attack: attack(x, y)
            calls[name]()
    except peers.Missing as reason:
        report.add_row({"case": case, "name": "on", "note": str(reason)})
        return
    times = measure(calls, quick(PLAN, options), options.device)
    faster = times.ratio("off", "on") or 0.0
    said = f"{faster:.2f} times as fast, expected {switch.expected}"
    found = {"times_as_fast": faster, "expected": switch.expected, "note": said}
    report.add(case, times, "off", {"on": found})


CASES = {switch.case: partial(run, switch) for switch in SWITCHES}
