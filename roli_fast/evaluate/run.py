"""An evaluation from beginning to end: the agreement of the processes, the folder, the rows."""

import contextlib
import datetime
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import Attack, AutoAttack
from roli_fast.attacks.base import Ball
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.warning_signs import LOOKED_AT, before_attack
from roli_fast.data import ImageDataset
from roli_fast.data.corruptions import SEVERITIES
from roli_fast.engine import Cost, Engine, InputGradient, SearchModel, plain
from roli_fast.engine.engine import DTYPES
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import RoliFastError, RunDirectoryError, describe
from roli_fast.evaluate.config import SCHEMA, EvaluationConfig
from roli_fast.evaluate.curve import plot_curves
from roli_fast.evaluate.dataset import (
    AttackRow,
    CorruptionRow,
    Row,
    Store,
    attack_dataset,
    collect,
    merged,
)
from roli_fast.evaluate.passes import expected
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
    config: EvaluationConfig,
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
        config: what to evaluate.
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
            ready = prepare(config, ranks, quiet=quiet or not ranks.first)
            if ranks.first:
                undo.callback(_open(config, folder, ready, resume=resume).release)
        except RoliFastError as error:
            problem = error
        distributed = Distributed(ranks)
        undo.enter_context(distributed.joined(torch.device("cpu"), wait=_LOADING))
        folder = _agree(distributed, ready, problem, folder)
        assert ready is not None
        finished = distributed.patient_barrier()
        if ranks.first:
            logger.info("folder: %s", folder)
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.threads or check_same(folder, ready.identity)["threads"])
        interrupt = undo.enter_context(Interrupt())
        undo.enter_context(_stops(ready.opened.model, interrupt))
        wait = partial(finished, interrupt.check)
        return _evaluate(config, folder, ready, interrupt, wait, quiet=quiet, ranks=ranks)


def _evaluate(  # noqa: PLR0913 - all that `run` has prepared
    config: EvaluationConfig,
    folder: Path,
    ready: Prepared,
    interrupt: Interrupt,
    wait: Callable[[], None],
    *,
    quiet: bool,
    ranks: Ranks,
) -> dict[str, Any] | None:
    """Measure this process's share; the first one waits for the others, and writes the report."""
    began, dataset = time.perf_counter(), ready.datasets["data"]
    engine = Engine(dtype=DTYPES[config.search_dtype], batch_size=config.batch_size)
    model, rows = engine.bind(ready.opened.model), plan(config, dataset)
    signs, cost = list[str](), Cost(0, 0)
    if ranks.first:
        signs, cost = _first_look(config, ready, model, rows, ranks.world)
    key = hash_text(ready.identity["key"])
    kept = config.norm if config.save_adversarial else ()
    store = Store(folder, key, config.chunk, norms=kept)
    work: list[tuple[ImageDataset, Sequence[Row], Store]] = [(dataset, rows, store)]
    if "ood" in ready.datasets:
        work.append((ready.datasets["ood"], [], Store(folder, key, config.chunk, "ood-")))
    where: Any = dict(device=ready.device, ranks=ranks, check=interrupt.check, quiet=quiet)
    for images in work:
        attack_dataset(model, *images, **where)
    wait()
    if not ranks.first:
        return None
    done = [collect(*images) for images in work]
    if kept:
        write_images(folder, dataset, store, done[0])
    report = build_report(config, ready, rows, [*map(merged, done)], signs, cost)
    report["seconds_here"] = time.perf_counter() - began
    write_json(folder / REPORT, report)
    if report["curves"]:
        try:
            plot_curves(report["curves"], folder / PICTURE)
        except Exception as error:  # a picture must not cost the report
            logger.warning("no picture of curves: %s: %s", type(error).__name__, error)
    return report


def _first_look(
    config: EvaluationConfig, ready: Prepared, model: SearchModel, rows: Sequence[Row], world: int
) -> tuple[list[str], Cost]:
    """Signs of masked gradients on the first images, and what these passes cost; the log tells what
    the attacks take at most."""
    threat, dataset = config.threats[0], ready.datasets["data"]
    ball = Ball(NORMS[threat.norm], threat.eps, threat.bounds)
    draws = any(isinstance(a, AutoAttack) and a.version == "rand" for a in config.attacks)
    batch = dataset.batch(torch.arange(min(LOOKED_AT, len(dataset))))
    x, y, began = batch.x.to(ready.device), batch.y.to(ready.device), time.perf_counter()
    with InputGradient(plain(model)) as gradient, torch.no_grad():
        right = is_right(gradient.evaluate(x, y)[1], y)
        seconds = (time.perf_counter() - began) / len(y)
        signs = before_attack(gradient, x, y, right, ball, draws=draws)
        cost = gradient.cost
    attacks = [r.attack for r in rows if isinstance(r, AttackRow) and "curve" not in r.group]
    attacks += [curve[0].attack for curve in config.curves for _ in curve]  # counted once
    attacked = len(dataset) * right.double().mean().item() / world
    logger.info("%s", expected(attacks, ready.num_outputs, seconds, attacked))
    return [sign.text for sign in signs], cost


def _open(config: EvaluationConfig, folder: Path, ready: Prepared, *, resume: bool) -> RunLock:
    """The folder, made or entered, by the first process alone."""
    if resume:
        say_what_changed(check_same(folder, ready.identity).get("packages") or {})
    beside = {IDENTITY: json.dumps(ready.identity, indent=2) + "\n"}
    text = SCHEMA.to_yaml(config)
    return open_folder(folder, text, resume=resume, option="--out", beside=beside)


def _agree(
    distributed: Distributed,
    ready: Prepared | None,
    problem: RoliFastError | None,
    folder: Path,
) -> Path:
    """Go on only if all processes are ready, and for the same; returns the first one's folder."""
    key = ready.identity["key"] if ready else None
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


def plan(config: EvaluationConfig, dataset: ImageDataset) -> list[Row]:
    """Every row, in the order in which a chunk meets them."""
    rows: list[Row] = []
    for threat in config.threats:
        attacks = [attack.under(threat) for attack in config.attacks]
        over = config.norm if config.union_only else (threat.norm,)
        rows += _attack_rows(threat.norm, attacks, over, config.seed)
    for group, attack in config.unseen_attacks.items():
        rows += _attack_rows(group, [attack], (group,), config.seed)
    rows += [
        CorruptionRow(kind, severity, dataset, config.seed)
        for kind in config.corruptions
        for severity in SEVERITIES
    ]
    return rows + [row for curve in config.curves for row in curve]


def _attack_rows(
    group: str, attacks: Sequence[Attack], over: tuple[str, ...], seed: int
) -> Iterator[AttackRow]:
    """A row for each part of the attacks; a label that comes again is numbered."""
    seen: dict[str, int] = {}
    for part in (part for attack in attacks for part in attack.parts):
        count = seen[part.label] = seen.get(part.label, 0) + 1
        label = part.label if count == 1 else f"{part.label}#{count}"
        yield AttackRow(part, label, group, over, ("evaluation", seed, group, label))
