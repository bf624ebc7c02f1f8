"""An evaluation from beginning to end: the agreement of the processes, the folder, the rows."""

import contextlib
import datetime
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import Attack, AutoAttack
from roli_fast.attacks.base import Ball
from roli_fast.data import ImageDataset
from roli_fast.data.corruptions import SEVERITIES
from roli_fast.engine import Engine
from roli_fast.engine.engine import DTYPES
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import RoliFastError, RunDirectoryError, describe
from roli_fast.evaluate.assessment import SCHEMA, Assessment
from roli_fast.evaluate.curve import plot_curves
from roli_fast.evaluate.dataset import Corruption, Images, Radii, Row, Runner, Search, Store
from roli_fast.evaluate.prepare import IDENTITY, Prepared, check_same, prepare
from roli_fast.evaluate.report import PICTURE, REPORT, build_report, write_images
from roli_fast.files import write_json
from roli_fast.norms import NORMS
from roli_fast.running.distributed import Distributed
from roli_fast.running.environment import hash_text, say_what_changed
from roli_fast.running.folder import open_folder
from roli_fast.running.lock import RunLock
from roli_fast.running.ranks import Ranks
from roli_fast.running.signals import Interrupt

logger = logging.getLogger("roli_fast.evaluate")

_LOADING = datetime.timedelta(hours=1)
"""The longest wait for the others to load data and model."""


def run(
    assessment: Assessment,
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    ranks: Ranks | None = None,
) -> dict[str, Any] | None:
    """Carry out an evaluation in `folder`, or go on with it there.

    Configuration, data and model are checked before the folder is made. What is finished is read
    from it and not done again; the flags come out as if it had never stopped.

    Args:
        assessment: what to evaluate.
        folder: a new or empty folder, or with `resume` one that an earlier call left; that of the
            first process counts.
        resume: go on from there.
        quiet: no progress bar.
        ranks: this process among all that call this at once with the same arguments, all of which
            see the folder; None takes what torchrun says.

    Returns:
        What evaluation.json holds; None in all processes but the first.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM came; what was finished is saved.
        RunDirectoryError: the folder is in use, or holds another evaluation or other images.
        RoliFastError: anything else that a user can mend.
    """
    ranks = ranks or Ranks.from_environment()
    with contextlib.ExitStack() as undo:
        ready, problem = None, None
        try:
            ready = prepare(assessment, ranks, quiet=quiet or not ranks.first)
            if ranks.first:
                undo.callback(_open(assessment, folder, ready, resume=resume).release)
        except RoliFastError as error:
            problem = error
        folder = _agree(ranks, ready, problem, folder)
        assert ready is not None
        if ranks.first:
            logger.info("folder: %s", folder)
        threads = assessment.threads or check_same(folder, ready.found)["threads"]
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        interrupt = undo.enter_context(Interrupt())
        undo.enter_context(_stops(ready.opened.model, interrupt))
        began = time.perf_counter()
        engine = Engine(dtype=DTYPES[assessment.search_dtype], batch_size=assessment.batch_size)
        runner = Runner(
            engine.bind(ready.opened.model),
            ready.device,
            Store(folder, hash_text(ready.found["key"])),
            assessment.norm if assessment.save_adversarial else (),
            interrupt.check,
            ranks,
            quiet,
        )
        sets = _sets(assessment, ready)
        for images in sets:
            runner.attack_dataset(images)
        if not ranks.first:
            return None
        return _report(assessment, folder, ready, runner, sets, began)


def _report(
    assessment: Assessment,
    folder: Path,
    ready: Prepared,
    runner: Runner,
    sets: list[Images],
    began: float,
) -> dict[str, Any]:
    """Write everything, once all processes are done."""
    done = [runner.collect(images) for images in sets]
    report = build_report(assessment, ready, sets, done)
    report["seconds_here"] = time.perf_counter() - began
    if assessment.save_adversarial:
        write_images(folder, assessment.norm, sets[0], runner.store, done[0])
    write_json(folder / REPORT, report)
    if report["curves"]:
        try:
            plot_curves(report["curves"], folder / PICTURE)
        except Exception as error:  # a picture must not cost the report
            logger.warning("no picture of curves: %s: %s", type(error).__name__, error)
    return report


def _open(assessment: Assessment, folder: Path, ready: Prepared, *, resume: bool) -> RunLock:
    """The folder, made or entered, by the first process alone."""
    if resume:
        say_what_changed(check_same(folder, ready.found).get("packages") or {})
    beside = {IDENTITY: json.dumps(ready.found, indent=2) + "\n"}
    text = SCHEMA.to_yaml(assessment)
    return open_folder(folder, text, resume=resume, option="--out", beside=beside)


def _agree(
    ranks: Ranks, ready: Prepared | None, problem: RoliFastError | None, folder: Path
) -> Path:
    """Go on only if all processes are ready, and for the same; returns the first one's folder."""
    key = ready.found["key"] + ready.found["pixels"] if ready else None
    # once, at the beginning: from here on each works on chunks of its own, and files tell which are
    # done, so that none waits inside an exchange, and a resume may have another number of processes
    with Distributed(ranks).joined(torch.device("cpu"), wait=_LOADING) as distributed:
        answers = distributed.all_gather((key, str(problem) if problem else None, str(folder)))
    if problem:
        raise problem
    for rank, (other, words, _) in enumerate(answers):
        if words:
            raise RoliFastError(f"process {rank} stopped: {words}")
        if other != key:
            fix = "A factory must give the same weights in every process."
            raise RunDirectoryError(
                describe("model", "the same model and images everywhere", f"others in {rank}", fix)
            )
    return Path(answers[0][2])


@contextlib.contextmanager
def _stops(model: Model, interrupt: Interrupt) -> Iterator[None]:
    """Within: a signal stops a search at its next pass, and not minutes later at its end."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        yield  # which take no hooks
        return

    def check(_module: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
        interrupt.check()

    with model.register_forward_pre_hook(check):  # the handle removes itself
        yield


def _sets(assessment: Assessment, ready: Prepared) -> list[Images]:
    """The evaluation's images with all that is asked for, and a second data set as it is."""
    threat = assessment.threats[0]
    ball = Ball(NORMS[threat.norm], threat.eps, threat.bounds)
    draws = any(isinstance(a, AutoAttack) and a.version == "rand" for a in assessment.attacks)
    rows, chunk = plan(assessment, ready.dataset), assessment.chunk
    sets = [Images("", ready.dataset, rows, chunk, (ball, draws))]
    return sets + ([Images("ood-", ready.second, (), chunk)] if ready.second else [])


def plan(assessment: Assessment, dataset: ImageDataset) -> list[Row]:
    """Every row, in the order in which a chunk meets them."""
    rows: list[Row] = []
    seed = assessment.seed
    for threat in assessment.threats:
        attacks = [attack.under(threat) for attack in assessment.attacks]
        over = None if assessment.union_only else threat.norm
        rows += _searches(threat.norm, attacks, over, seed)
    for group, attack in assessment.unseen_attacks.items():
        rows += _searches(group, [attack], group, seed)
    rows += [
        Corruption(kind, severity, dataset, seed)
        for kind in assessment.corruptions
        for severity in SEVERITIES
    ]
    curve = assessment.curve
    return rows + [Radii(attack, curve, seed) for attack in assessment.curve_attacks]


def _searches(
    group: str, attacks: Sequence[Attack], over: str | None, seed: int
) -> Iterator[Search]:
    seen: dict[str, int] = {}
    for part in (part for attack in attacks for part in attack.parts):
        count = seen[part.label] = seen.get(part.label, 0) + 1
        label = part.label if count == 1 else f"{part.label}#{count}"
        yield Search(part, label, group, over, seed)
