"""The analysis of runs that are there: what is missing, and what is asked for."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import torch

from roli_fast import report
from roli_fast.analyze.cli import Command
from roli_fast.analyze.deep import check_budget, make_deep
from roli_fast.analyze.targets import Target, targets
from roli_fast.data import Splits
from roli_fast.data.inspection import inspect_images
from roli_fast.errors import RoliFastError, RunDirectoryError
from roli_fast.running.device import pick_device
from roli_fast.running.lock import RunLock
from roli_fast.running.signals import Interrupt
from roli_fast.train.aftermath import analysis_table, quiet_costs
from roli_fast.train.context import Context
from roli_fast.train.images import all_parts, as_begun
from roli_fast.train.method_analysis import MethodAnalysis
from roli_fast.train.metrics import NoRecorder
from roli_fast.train.run_directory import identity, saved_environment
from roli_fast.train.sweep import SWEEP

logger = logging.getLogger("roli_fast.analyze")


def run(command: Command, *, quiet: bool = False) -> Iterator[str]:
    """Make what is missing or asked for, run by run; gives the lines to print.

    Args:
        command: what the command line asks for.
        quiet: no progress bars.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM came; what is finished is saved.
        RoliFastError: anything that a user can mend.
    """
    found = targets(command.runs, command.methods, command.seeds)
    device = pick_device(command.device)
    before = torch.get_num_threads()
    for run_dir, group in groupby(found, lambda target: target.run_dir):
        own = list(group)
        with RunLock(run_dir, "RUN"), Interrupt() as interrupt, contextlib.ExitStack() as undo:
            undo.callback(torch.set_num_threads, before)
            splits, threads = _open(own[0], quiet=quiet)
            check_budget(command, splits.num_classes)
            torch.set_num_threads(threads)
            workers = own[0].experiment.workers if command.workers is None else command.workers
            context = Context(device, workers, 0.0, NoRecorder(), interrupt, quiet=quiet)
            splits = splits.kept_on(device)
            for target in own:
                _one(command, target, splits, context)
            page = report.write(run_dir)
        methods = list(dict.fromkeys(target.method for target in own))
        yield f"{run_dir}:\n{analysis_table(run_dir, methods)}\nWritten: {page}\n"
    for folder in command.runs:
        if (folder / SWEEP).is_file() and (folder / "summary.json").is_file():
            yield f"Written: {report.write(folder)}"


def _one(command: Command, target: Target, splits: Splits, context: Context) -> None:
    experiment = target.experiment
    place = (experiment, splits, target.run_dir, target.seed, target.method, context)
    analysis = MethodAnalysis(*place, images=command.images)
    tested = (analysis.folder / "test.json").is_file()
    analysis = replace(analysis, test=tested)
    with quiet_costs():
        for _part in analysis.steps(again=command.again):
            context.check()
    for _part in make_deep(analysis, command):
        context.check()


def _open(target: Target, *, quiet: bool) -> tuple[Splits, int]:
    """The run's images and its number of threads.

    Raises:
        RunDirectoryError: the images are not those of the run.
        RoliFastError: they cannot be read.
    """
    experiment = target.experiment
    try:
        begun, _ = as_begun(target.run_dir, {"data": experiment.data.load()})
        hashes = inspect_images(all_parts(begun), decode=False, quiet=quiet)
    except RunDirectoryError:
        raise
    except RoliFastError as error:
        text = (
            f"the data of '{target.run_dir}': {error} Paths count from where the run was started."
        )
        raise type(error)(text) from error
    splits = begun["data"]
    assert splits is not None
    logger.info("%s: %s", target.run_dir, splits.summary())
    found = identity(experiment, begun, hashes)
    del found["configuration"]  # fields of later versions are welcome
    saved = saved_environment(target.run_dir, found)
    if not saved:
        raise RunDirectoryError(
            f"`RUN`: '{target.run_dir}' has no environment.json, so nobody can tell whether these "
            "are its images. Put it back."
        )
    return splits, int(saved.get("threads") or torch.get_num_threads())
