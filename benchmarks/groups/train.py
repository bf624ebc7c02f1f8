"""One update of adversarial training (PGD-7) on ViT-S: linear probe, LoRA on all linears, full.

Ours, with the package's own objective, tuning method and optimiser, beside RoLI's loop on the same
network and batch, and, for LoRA, beside PEFT's layers under an attack that computes the gradient of
the input alone (what a careful user would write round PEFT).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from groups.pgd import BFLOAT16, quick
from harness import ours, peers, plain
from harness.networks import images, network
from harness.report import Options, Report
from harness.timing import Call, Plan, Times, measure
from roli_fast import peft

RANK = 16
LAYERS = ("qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
METHODS: dict[str, peft.Method] = {
    "linear": peft.Linear(),
    "lora": peft.LoRA(rank=RANK, alpha=RANK, dropout=0.0, targets=LAYERS),
    "full": peft.Full(),
}


@dataclass(frozen=True)
class Case:
    """One tuning method. `bf16` and `fp32`: at least so many times as fast as RoLI's loop."""

    method: str
    bf16: float | None = None
    fp32: float | None = None
    network: str = "vit_small_patch16_224"
    batch: int = 8
    steps: int = 7
    plan: Plan = field(default_factory=lambda: Plan(budget=60))
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.method} {self.network.split('_patch')[0]} b{self.batch}"


UPDATES = [Case("linear", bf16=3.8), Case("lora", bf16=4.5), Case("full", bf16=5.0, fp32=1.38)]


def release(case: Case, x: Tensor, y: Tensor, options: Options, steps: int) -> Call:
    """RoLI's loop; the backbone is in eval mode unless everything trains."""
    model: Any = network(case.network, options)
    if case.method == "linear":
        model.requires_grad_(False)
    elif case.method == "lora":
        plain.add_lora(model, LAYERS, RANK)
    model.head.requires_grad_(True)
    return plain.training(model, x, y, steps=steps, mode=lambda: model.train(case.method == "full"))


def with_peft(case: Case, x: Tensor, y: Tensor, options: Options) -> Call:
    """PEFT's LoRA, torchattacks' lean PGD, AdamW."""
    adapted = peers.peft_lora(network(case.network, options), LAYERS, RANK).eval()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def run() -> None:
        x_adv = (x + torch.empty_like(x).uniform_(-plain.EPS, plain.EPS)).clamp_(0, 1)
        for _ in range(case.steps):
            x_adv.requires_grad_(True)
            (grad,) = torch.autograd.grad(loss(x_adv), x_adv)
            with torch.no_grad():
                moved = x_adv + plain.STEP_SIZE * grad.sign()
                x_adv = torch.min(torch.max(moved, x - plain.EPS), x + plain.EPS).clamp_(0, 1)
        optimizer.zero_grad(set_to_none=True)
        loss(x_adv).backward()
        optimizer.step()

    def loss(images: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(adapted(images), y)

    return run


def makers(case: Case, options: Options) -> dict[str, Callable[[], Call]]:
    """Name -> what builds the candidate, with a network of its own."""
    x, y = images(case.network, 2 if options.quick else case.batch, options)

    def mine(passes: ours.Passes) -> Call:
        model = network(case.network, options)
        return ours.training(
            model, x, y, METHODS[case.method], ours.linf(case.steps), passes=passes
        )

    made = {
        "ours fp32": lambda: mine({}),
        "ours bf16": lambda: mine(BFLOAT16),
        "RoLI's loop": lambda: release(case, x, y, options, case.steps),
        "RoLI's loop, clean": lambda: release(case, x, y, options, 0),
    }
    if case.method == "lora":
        made["PEFT"] = lambda: with_peft(case, x, y, options)
    return {name: make for name, make in made.items() if name in (case.names or made)}


def run(case: Case, report: Report) -> None:
    """Rows and targets of one method."""
    goals(report, case, one(report, case))


def one(report: Report, case: Case) -> Times:
    """Measure one method and add its rows."""
    options = report.options
    calls: dict[str, Call] = {}
    columns: dict[str, dict[str, Any]] = {}
    for name, make in makers(case, options).items():
        try:
            calls[name] = make()
        except peers.Missing as reason:
            columns[name] = {"note": str(reason)}
            continue
        calls[name]()
    times = measure(calls, quick(case.plan, options), options.device)
    batch = 2 if options.quick else case.batch
    for name in times.seconds:
        columns[name] = {"images_per_second": batch / (times.median(name) or 1.0)}
    report.add(case.name, times, "ours fp32", columns)
    report.case[case.name] = {"network": case.network, "batch": batch, "steps": case.steps}
    return times


def goals(report: Report, case: Case, times: Times) -> None:
    """The issue's targets."""
    for short, least in (("bf16", case.bf16), ("fp32", case.fp32)):
        if least is not None:
            what = f"{case.name}: ours {short}, times as fast as RoLI's loop"
            report.target(what, times.ratio("RoLI's loop", f"ours {short}"), at_least=least)


CASES = {case.name: partial(run, case) for case in UPDATES}
