"""An evaluation from beginning to end."""

import contextlib
import datetime
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.engine import Engine
from roli_fast.engine.engine import DTYPES
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import RoliFastError, RunDirectoryError, describe
from roli_fast.evaluate.assessment import Assessment
from roli_fast.evaluate.config import SCHEMA
from roli_fast.evaluate.curves import FOLDER as CURVES
from roli_fast.evaluate.curves import Curves
from roli_fast.evaluate.identity import check_same, only_begun, write_identity
from roli_fast.evaluate.measurement import Measurement
from roli_fast.evaluate.prepare import Prepared, prepare
from roli_fast.evaluate.progress import Progress
from roli_fast.evaluate.report import build_report, write_report
from roli_fast.evaluate.samples import chunks
from roli_fast.evaluate.shifts import FOLDER as SHIFTS
from roli_fast.evaluate.shifts import Shifts, views
from roli_fast.evaluate.state import Chunk, Store
from roli_fast.evaluate.unseen import with_corruptions
from roli_fast.evaluate.worker import Worker, plan
from roli_fast.running.environment import hash_text, say_what_changed
from roli_fast.running.folder import open_folder
from roli_fast.running.lock import RunLock
from roli_fast.running.progress import progress_bar
from roli_fast.running.ranks import Ranks
from roli_fast.running.signals import Interrupt
from roli_fast.running.team import Team

logger = logging.getLogger("roli_fast.evaluate")

OPTION = "--out"
_POLL_SECONDS = 0.5
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
        ready, lock, problem = None, None, None
        try:
            ready = prepare(assessment, ranks, quiet=quiet or not ranks.first)
            if ranks.first:
                lock = _open(assessment, folder, ready, resume=resume)
                undo.callback(lock.release)
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
        worker = _work(assessment, folder, ready, ranks, interrupt, quiet)
        extras = _extras(assessment, folder, ready, worker)
        for extra in extras.values():
            _measure(extra, ranks, interrupt, quiet)
        if not ranks.first:
            return None
        done = _collect(worker, interrupt)
        report = build_report(assessment, ready, done, worker.searches)
        for name, extra in extras.items():
            _wait_for(extra, interrupt)
            report[name] = extra.report()
            try:
                extra.plot(folder)
            except Exception as error:  # a picture must not cost the report
                logger.warning("no picture of %s: %s: %s", name, type(error).__name__, error)
        if report["unseen"]:
            report["unseen"] = with_corruptions(report["unseen"], report["shifts"])
        report["seconds_here"] = time.perf_counter() - began
        write_report(folder, report, worker, done)
        return report


def _open(assessment: Assessment, folder: Path, ready: Prepared, *, resume: bool) -> RunLock:
    """The folder, made or entered, by the first process alone."""
    begins = not resume or only_begun(folder, assessment)
    if not begins:
        say_what_changed(check_same(folder, ready.found).get("packages") or {})
    text = SCHEMA.to_yaml(assessment)
    lock = open_folder(folder, text, resume=resume, option=OPTION)
    try:
        if begins:
            write_identity(folder, ready.found)
    except BaseException:
        lock.release()
        raise
    return lock


def _agree(
    ranks: Ranks, ready: Prepared | None, problem: RoliFastError | None, folder: Path
) -> Path:
    """Go on only if all processes are ready, and for the same; returns the first one's folder."""
    key = ready.found["key"] + ready.found["pixels"] if ready else None
    # once, at the beginning: from here on each works on chunks of its own, and files tell which are
    # done, so that none waits inside an exchange, and a resume may have another number of processes
    with Team(ranks).joined(torch.device("cpu"), wait=_LOADING) as team:
        answers = team.gather((key, str(problem) if problem else None, str(folder)))
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

    handle = model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _work(  # noqa: PLR0913 - what a process works with
    assessment: Assessment,
    folder: Path,
    ready: Prepared,
    ranks: Ranks,
    interrupt: Interrupt,
    quiet: bool,
) -> Worker:
    """Attack this process's share of the chunks."""
    searches = plan(assessment)
    engine = Engine(dtype=DTYPES[assessment.search_dtype], batch_size=assessment.batch_size)
    model = engine.bind(ready.opened.model)
    parts = chunks(len(ready.dataset), assessment.chunk)
    progress = Progress(parts, searches, ranks, interrupt, quiet)
    store = Store(folder, hash_text(ready.found["key"]))
    worker = Worker(
        assessment, ready.dataset, model, searches, store, ready.device, progress.after_search
    )
    kept = {number: worker.load(number, rows) for number, rows in enumerate(parts)}
    left = [n for n, chunk in kept.items() if chunk is None or len(chunk.found) < len(searches)]
    if 0 < len(left) < ranks.world:
        logger.info(
            "%d chunks for %d processes: a smaller --chunk gives all work", len(left), ranks.world
        )
    mine = left[ranks.rank :: ranks.world]
    with progress.begin(kept, mine):
        for number in mine:
            interrupt.check()
            worker.run(number, parts[number])
    return worker


def _collect(worker: Worker, interrupt: Interrupt) -> list[Chunk]:
    """Every chunk, once all processes are done."""
    parts = chunks(len(worker.dataset), worker.assessment.chunk)
    done: list[Chunk] = []
    for number, rows in enumerate(parts):
        while True:
            chunk = worker.load(number, rows)
            if chunk is not None and len(chunk.found) == len(worker.searches):
                done.append(chunk)
                break
            interrupt.check()
            time.sleep(_POLL_SECONDS)
    return done


def _extras(
    assessment: Assessment, folder: Path, ready: Prepared, worker: Worker
) -> dict[str, Measurement]:
    """Entry of the report -> what is measured beside the attacks."""
    identity, device = hash_text(ready.found["key"]), ready.device
    seen = views(ready.dataset, assessment.corruptions, assessment.seed, ready.second)
    shifts = Shifts(folder / SHIFTS, identity, worker.model, seen, assessment.chunk, device)
    curves = Curves(
        folder / CURVES,
        identity,
        ready.dataset,
        assessment.chunk,
        worker.model,
        assessment.curve_attacks,
        assessment.curve,
        assessment.seed,
        device,
        name=Path(assessment.model.source).stem,
    )
    return {"shifts": shifts, "curves": curves}


def _measure(extra: Measurement, ranks: Ranks, interrupt: Interrupt, quiet: bool) -> None:
    """This process's share of the pieces."""
    left = [piece for piece in extra.pieces if extra.saved(piece) is None]
    mine = left[ranks.rank :: ranks.world]
    total = sum(map(extra.images, mine))
    with progress_bar(extra.title, total=total, quiet=quiet or not ranks.first or not mine) as bar:
        for piece in mine:
            interrupt.check()
            extra.measure(piece, interrupt.check)
            bar.update(extra.images(piece))


def _wait_for(extra: Measurement, interrupt: Interrupt) -> None:
    """Until all processes have done theirs."""
    for piece in extra.pieces:
        while extra.saved(piece) is None:
            interrupt.check()
            time.sleep(_POLL_SECONDS)
