"""An evaluation from beginning to end."""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.data import ImageDataset, Splits
from roli_fast.engine import SearchModel
from roli_fast.engine.input_gradient import Model, check_logits
from roli_fast.errors import ArgumentError, RoliFastError, RunDirectoryError, describe
from roli_fast.evaluate.assessment import DTYPES, Assessment
from roli_fast.evaluate.config import SCHEMA
from roli_fast.evaluate.identity import check_same, identity, write_identity
from roli_fast.evaluate.ranks import Ranks
from roli_fast.evaluate.report import build_report, write_report
from roli_fast.evaluate.samples import chosen, chunks
from roli_fast.evaluate.state import Chunk, Store
from roli_fast.evaluate.subject import Opened, open_model
from roli_fast.evaluate.worker import Worker, plan
from roli_fast.running.device import pick_device, pick_threads
from roli_fast.running.environment import hash_text
from roli_fast.running.folder import open_folder
from roli_fast.running.lock import RunLock
from roli_fast.running.progress import progress_bar
from roli_fast.running.signals import Interrupt

logger = logging.getLogger("roli_fast.evaluate")

OPTION = "--out"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Prepared:
    """What is known before the folder is touched."""

    splits: Splits
    dataset: ImageDataset
    opened: Opened
    device: torch.device
    threads: int
    found: dict[str, Any]


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
            ready = prepare(assessment, ranks)
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
        if not ranks.first:
            return None
        done = _collect(worker, interrupt)
        report = build_report(assessment, ready, done, worker.searches)
        report["seconds_here"] = time.perf_counter() - began
        write_report(folder, report, worker, done)
        return report


def prepare(assessment: Assessment, ranks: Ranks) -> Prepared:
    """Read the data and open the model, as far as that finds mistakes; writes nothing."""
    device = pick_device(ranks.device(assessment.device))
    splits = assessment.data.load()
    dataset = chosen(assessment, splits)
    size = dataset.image_size
    opened = open_model(assessment.model, num_classes=splits.num_classes, image_size=size)
    threads = _threads(opened.model, size, assessment)
    opened = replace(opened, model=_to(opened.model, device))
    notes = _try_out(opened, dataset, splits, device)
    opened = replace(opened, notes=(*opened.notes, *notes))
    found = identity(assessment, dataset, opened)
    found["threads"] = threads
    found["device"] = str(device)
    return Prepared(splits, dataset, opened, device, threads, found)


def _threads(model: Model, size: int, assessment: Assessment) -> int:
    if assessment.threads:
        return assessment.threads
    if not isinstance(model, nn.Module):
        return torch.get_num_threads()
    try:
        return pick_threads(model, size, assessment.batch_size)
    except (RuntimeError, ValueError, AssertionError, TypeError):  # `_try_out` tells it better
        return torch.get_num_threads()


def _to(model: Model, device: torch.device) -> Model:
    return model.to(device) if isinstance(model, nn.Module) else model


def _try_out(
    opened: Opened, dataset: ImageDataset, splits: Splits, device: torch.device
) -> list[str]:
    """One image through the model: whether images, outputs and labels fit together."""
    x = dataset.batch(torch.tensor([0])).x.to(device)
    try:
        with torch.no_grad():
            logits: Any = opened.model(x)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "Set data.image_size to the model's, or model.resize to resize inside the model."
        got = f"{type(error).__name__}: {words}"
        raise ArgumentError(
            describe("model", f"a model of images {tuple(x.shape[1:])}", got, fix)
        ) from error
    check_logits(logits, x)
    outputs, highest = logits.shape[1], int(dataset.labels.max())
    if highest >= outputs:
        got = f"labels up to {highest} ('{splits.classes[highest]}')"
        fix = f"The data has {splits.num_classes} classes: use data of the model's classes."
        expected = f"labels in [0, {outputs}) for a model with {outputs} outputs"
        raise ArgumentError(describe("data", expected, got, fix))
    return _notes_on_classes(opened.classes, splits.classes, outputs)


def _notes_on_classes(known: tuple[str, ...], classes: tuple[str, ...], outputs: int) -> list[str]:
    notes = []
    if outputs != len(classes):
        notes.append(f"the model has {outputs} outputs, the data {len(classes)} classes")
    different = [(a, b) for a, b in zip(known, classes, strict=False) if a != b]
    if different:
        a, b = different[0]
        notes.append(
            f"{len(different)} classes are called otherwise in the data than in the model's file "
            f"('{b}', '{a}'): if they are others, the accuracy says nothing"
        )
    return notes


def _open(assessment: Assessment, folder: Path, ready: Prepared, *, resume: bool) -> RunLock:
    """The folder, made or entered, by the first process alone."""
    if resume:
        check_same(folder, ready.found)
    text = SCHEMA.to_yaml(assessment)
    lock = open_folder(folder, text, resume=resume, option=OPTION)
    try:
        if not resume:
            write_identity(folder, ready.found)
    except BaseException:
        lock.release()
        raise
    return lock


def _agree(
    ranks: Ranks, ready: Prepared | None, problem: RoliFastError | None, folder: Path
) -> Path:
    """Go on only if all processes are ready, and for the same; returns the first one's folder."""
    key = ready.found["key"] if ready else None
    answers = ranks.share((key, str(problem) if problem else None, str(folder)))
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
    if not isinstance(model, nn.Module):
        yield
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
    model = SearchModel(
        ready.opened.model,
        batch_size=assessment.batch_size,
        dtype=DTYPES[assessment.search_dtype],
    )
    parts = chunks(len(ready.dataset), assessment.chunk)
    progress = _Progress(parts, searches, ranks, interrupt, quiet)
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


class _Progress:
    """A bar over this process's share, with the robust accuracy so far."""

    def __init__(
        self,
        parts: list[range],
        searches: list[Any],
        ranks: Ranks,
        interrupt: Interrupt,
        quiet: bool,
    ) -> None:
        self._parts, self._count = parts, len(searches)
        self._ranks, self._interrupt, self._quiet = ranks, interrupt, quiet
        self._finished: dict[int, Chunk] = {}
        self._bar: Any = None

    @contextlib.contextmanager
    def begin(self, kept: dict[int, Chunk | None], mine: list[int]) -> Iterator[None]:
        """Within: the bar is shown."""
        for number, chunk in kept.items():
            if chunk is not None and len(chunk.found) == self._count:
                self._finished[number] = chunk
        saved = sum(len(c.found) * len(c.ids) for n in mine if (c := kept[n]))
        world = self._ranks.world
        title = "evaluate" if world == 1 else f"evaluate, process {self._ranks.rank + 1}/{world}"
        self._bar = progress_bar(
            title,
            total=sum(len(self._parts[number]) for number in mine),
            initial=saved / max(1, self._count),
            quiet=self._quiet or not self._ranks.first,
            smoothing=0.0,  # searches differ, chunks do not: the mean is the better guess
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )
        try:
            yield
        finally:
            self._bar.close()

    def after_search(self, chunk: Chunk) -> None:
        """One more search is done on a chunk."""
        if len(chunk.found) == self._count:
            self._finished[chunk.number] = chunk
        shown = {**self._finished, chunk.number: chunk}.values()
        images = sum(len(c.ids) for c in shown)
        robust = sum(int(c.alive(None).sum()) for c in shown)
        self._bar.set_postfix_str(
            f"robust {100 * robust / images:.1f} % of {images}", refresh=False
        )
        self._bar.update(len(chunk.ids) / self._count)
        self._interrupt.check()
