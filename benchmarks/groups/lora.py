"""LoRA on every linear layer of ViT-tiny beside PEFT's: a PGD-7 attack, and a training step.

Attacks freeze the weights for everybody and step with our op: what differs is the layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from groups.pgd import quick
from groups.train import LAYERS, RANK
from harness import ours, peers
from harness.networks import images, network
from harness.plain import EPS, STEP_SIZE
from harness.report import Options, Report
from harness.timing import Call, Plan, measure
from roli_fast import ops
from roli_fast.peft import LoRA, apply

NETWORK, BATCH, STEPS = "vit_tiny_patch16_224", 8, 7
PLAN = Plan(budget=40)
TARGETS = {
    "attack": {"base": 1 / 1.03, "PEFT": 1.35},
    "update": {"PEFT": 1.0, "PEFT, dropout": 1.0},
}
"""Ours is at least so many times as fast."""


def low_rank(options: Options, name: str, dropout: float) -> nn.Module:
    """Our LoRA on every linear layer of the blocks."""
    model: Any = network(name, options)
    apply(model, LoRA(rank=RANK, alpha=RANK, dropout=dropout, targets=LAYERS))
    return model


def attack(model: nn.Module, x: Tensor, y: Tensor, steps: int, **passes: Any) -> Call:
    """PGD with our engine and step, whatever the model."""

    def run() -> Tensor:
        x_adv = x.clone()
        with ours.input_gradient(model, passes) as gradient, torch.no_grad():
            for _ in range(steps):
                grad, _, _ = gradient(x_adv, y)
                ops.linf_step_(x_adv, grad, x, eps=EPS, step_size=STEP_SIZE)
        return x_adv

    return run


def merged_attack(model: Any, x: Tensor, y: Tensor) -> Call:
    """PEFT's own way to merge: into the weights and out again, which drifts."""
    inner = attack(model, x, y, STEPS)

    def run() -> None:
        model.merge_adapter()
        inner()
        model.unmerge_adapter()

    return run


def update(model: nn.Module, x: Tensor, y: Tensor) -> Call:
    """One step of AdamW on whatever requires grad, on the images as they are."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def makers(options: Options) -> dict[str, dict[str, Callable[[], Call]]]:
    """Case -> name -> what builds the candidate."""
    x, y = images(NETWORK, 2 if options.quick else BATCH, options)

    def mine(dropout: float = 0.0) -> nn.Module:
        return low_rank(options, NETWORK, dropout)

    def theirs(dropout: float = 0.0) -> nn.Module:
        return peers.peft_lora(network(NETWORK, options), LAYERS, RANK, dropout)

    return {
        "attack": {
            "ours": lambda: attack(mine(), x, y, STEPS),
            "base": lambda: attack(network(NETWORK, options), x, y, STEPS),
            "unmerged": lambda: attack(mine(), x, y, STEPS, merge=False),
            "PEFT": lambda: attack(theirs(), x, y, STEPS),
            "PEFT merged": lambda: merged_attack(theirs(), x, y),
        },
        "update": {
            "ours": lambda: update(mine(), x, y),
            "PEFT": lambda: update(theirs(), x, y),
            "ours, dropout": lambda: update(mine(0.1), x, y),
            "PEFT, dropout": lambda: update(theirs(0.1), x, y),
        },
    }


def run(case: str, report: Report) -> None:
    """One case."""
    calls: dict[str, Call] = {}
    columns: dict[str, dict[str, Any]] = {}
    for name, make in makers(report.options)[case].items():
        try:
            calls[name] = make()
            calls[name]()
        except peers.Missing as reason:
            columns[name] = {"note": str(reason)}
    times = measure(calls, quick(PLAN, report.options), report.options.device)
    report.add(case, times, "ours", columns)
    for other, least in TARGETS[case].items():
        own = "ours, dropout" if other.endswith("dropout") else "ours"
        what = f"{case}: {own}, times as fast as {other}"
        report.target(what, times.ratio(other, own), at_least=least)
    report.case |= {"network": NETWORK, "batch": BATCH, "steps": STEPS, "rank": RANK}


CASES = {case: partial(run, case) for case in TARGETS}
