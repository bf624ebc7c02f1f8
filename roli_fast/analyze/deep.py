"""The parts of an analysis that are made when asked for, stage by stage, into analysis.json."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from roli_fast.analysis.costs import Cost
from roli_fast.analysis.deep import (
    Start,
    head_scale_looks,
    head_scale_tree,
    head_scale_tree_cost,
    kernel_tree,
    kernel_tree_cost,
    most_kernel_images,
    one_step_looks,
    one_step_tree,
    one_step_tree_cost,
)
from roli_fast.analysis.ntk import COPIES
from roli_fast.analyze.cli import Command
from roli_fast.analyze.stage_view import start_of
from roli_fast.errors import ConfigError, describe
from roli_fast.files import write_json
from roli_fast.train.aftermath import quiet_costs
from roli_fast.train.context import Context
from roli_fast.train.method_analysis import FILE, MethodAnalysis, read_analysis

logger = logging.getLogger("roli_fast.analyze")

KERNEL_IMAGES = 50
"""Of a kernel, and as many for its test, where they fit and nobody says otherwise."""


@dataclass(frozen=True)
class Part:
    """A deep part: its field in a stage of analysis.json, what makes it, what it costs,
    how many images its progress bar counts, and whether images pass the model one by one."""

    field: str
    make: Callable[[Start, Command], Any]
    cost: Callable[[Start, Command], Cost]
    looks: Callable[[Start, Command], int]
    one_by_one: bool = False


PARTS = {
    "ft_ratio": Part(
        "one_step",
        lambda s, _command: one_step_tree(s),
        lambda s, _command: one_step_tree_cost(s),
        lambda s, _command: one_step_looks(s),
    ),
    "head_scale": Part(
        "head_scale",
        lambda s, _command: head_scale_tree(s),
        lambda s, _command: head_scale_tree_cost(s),
        lambda s, _command: head_scale_looks(s),
    ),
    "kernel": Part(
        "kernel",
        lambda s, command: kernel_tree(s, command.memory),
        lambda s, command: kernel_tree_cost(s, command.memory),
        lambda s, command: kernel_tree_cost(s, command.memory).forwards,
        one_by_one=True,
    ),
}
"""By the flags that ask for them."""


def make_deep(analysis: MethodAnalysis, command: Command) -> Iterator[str]:
    """Make the parts that `command` asks for and are not there; yields each once it is saved.

    Raises:
        ArgumentError: N x C of a kernel is above `command.memory`.
    """
    path = analysis.folder / FILE
    tree = read_analysis(path)
    for flag in command.deep:
        part = PARTS[flag]
        for number, stage in enumerate(tree["stages"], 1):
            if part.field in stage and not command.again:
                continue
            start = start_of(analysis, number, _images(flag, analysis, command))
            if start is None:
                continue
            name = f"seed {analysis.seed} {analysis.method}/{stage['name']}"
            stage[part.field], seconds = _made(part, start, command, name, analysis.context)
            stage.setdefault("deep_seconds", {})[part.field] = seconds
            write_json(path, tree)
            yield f"{part.field} of {stage['name']}"


def check_budget(command: Command, classes: int) -> None:
    """Tell at once, before anything is made, that a kernel would not fit.

    Raises:
        ConfigError: N x C is above `command.memory`.
    """
    most = most_kernel_images(classes, command.memory)
    wanted = command.images or 1
    if "kernel" not in command.deep or wanted <= most:
        return
    rows = 2 * wanted * classes
    what = f"at most {most} for a kernel of {classes} classes in {command.memory / 2**30:.3g} GiB"
    got = f"{wanted}: with as many validation images N x C = {rows:,}"
    fix = f"Take fewer, or --memory {COPIES * 8 * rows**2}, or --ft_ratio, which needs no kernel."
    raise ConfigError(describe("--images", what, got, fix))


def _images(flag: str, analysis: MethodAnalysis, command: Command) -> int | None:
    if flag == "kernel" and command.images is None:
        return min(KERNEL_IMAGES, most_kernel_images(analysis.splits.num_classes, command.memory))
    return command.images


def _made(
    part: Part, start: Start, command: Command, name: str, context: Context
) -> tuple[Any, float]:
    """A part, and the seconds that it took; its cost is told before."""
    cost = part.cost(start, command)
    expected = cost.seconds(_forward_seconds(start, part.one_by_one), _flops_per_second(start))
    logger.info("%s: %s; about %s", name, cost, _duration(expected))
    started = time.perf_counter()
    total = part.looks(start, command)
    with quiet_costs(), context.bar(f"{name}/{part.field}", total=total) as bar:

        def after_batch(count: int) -> None:
            bar.update(count)
            context.interrupt.check()

        made = part.make(replace(start, after_batch=after_batch), command)
    return made, time.perf_counter() - started


def _forward_seconds(start: Start, one_by_one: bool) -> float:
    """Of one image, alone or in a batch of the usual size."""
    batch = next(iter(start.train()))
    x = batch.x[:1] if one_by_one else batch.x
    with torch.no_grad():
        return _seconds(lambda: start.model(x).sum().item()) / len(x)


def _flops_per_second(start: Start) -> float:
    """Of products of matrices in fp64."""
    device = next(start.model.parameters()).device
    a = torch.ones(256, 256, dtype=torch.float64, device=device)
    return 2 * 256**3 / _seconds(lambda: (a @ a).sum().item())


def _seconds(work: Callable[[], object]) -> float:
    """The best of three: the first one warms up."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
