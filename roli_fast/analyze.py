"""`python -m roli_fast.analyze RUN`: why a training run came out as it did; see `--help`."""

import argparse
import contextlib
import logging
import re
import signal
import sys
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import torch

from roli_fast import report
from roli_fast.analysis.deep import PARTS, Part, Start
from roli_fast.analysis.ntk import COPIES, MEMORY, most_inputs
from roli_fast.analysis.view import LinearHead
from roli_fast.data import Splits
from roli_fast.data.inspection import inspect_images
from roli_fast.errors import (
    ConfigError,
    InterruptedRunError,
    RoliFastError,
    RunDirectoryError,
    describe,
)
from roli_fast.files import write_json
from roli_fast.running.command import run_command
from roli_fast.running.device import pick_device
from roli_fast.running.folder import CONFIG
from roli_fast.running.lock import RunLock
from roli_fast.running.signals import Interrupt
from roli_fast.train.analysis import FILE, MethodAnalysis, read_analysis
from roli_fast.train.context import Context, Recorder
from roli_fast.train.experiment import SCHEMA, Experiment
from roli_fast.train.run_directory import all_parts, identity, saved_environment
from roli_fast.train.summary import analysis_table
from roli_fast.train.sweep import SWEEP

logger = logging.getLogger("roli_fast.analyze")

KERNEL_IMAGES = 50
"""Of a kernel, and as many for its test, where they fit and nobody says otherwise."""

ABOUT = """\
Why a training run came out as it did: what each stage did to head and features, and how far the
confidence of the final model can be trusted. Reads a run's folder, makes what is missing of
seed-S/METHOD/analysis.json, and writes report.html anew. Always: head norms, residuals, feature
drift, separation, calibration, accuracy against eps, as training itself leaves them; seconds. The
parts below take minutes. Stopped, the same command goes on after the last finished part."""


@dataclass(frozen=True)
class Target:
    """One finished training: a method of a seed of a run."""

    run_dir: Path
    experiment: Experiment
    seed: int
    method: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. `python -m roli_fast.analyze --help` lists the options.")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Returns:
        `runs`, the wanted flags of `PARTS` as `deep`, and the options by name.

    Raises:
        ConfigError: an unknown or ill-typed option, named.
        SystemExit: after --help.
    """
    layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=19, width=99)
    own = _Parser("python -m roli_fast.analyze", None, ABOUT, formatter_class=layout)
    own.allow_abbrev = False
    run = "a folder that python -m roli_fast.train wrote, a sweep's too, or one method in it"
    own.add_argument("runs", metavar="RUN", nargs="+", type=Path, help=f"{run}: RUN/seed-0/roli")
    deep = {
        "ft_ratio": "the first update of each stage to first order: FT ratio, predicted and actual "
        "change of the features; one gradient and one Jacobian product",
        "head_scale": "the same with the head times 0.1, 1 and 10",
        "kernel": "the whole tangent kernel P + F at each stage's start: rank, spectrum, kernel "
        "regression. N images of C classes take N x C gradients and (N C)^2 numbers: small N only, "
        "50 unless --images says otherwise",
    }
    for name, text in deep.items():
        own.add_argument(f"--{name}", action="append_const", dest="deep", const=name, help=text)
    own.add_argument("--all", action="store_const", dest="deep", const=list(deep), help="all three")
    own.add_argument("--methods", metavar="A,B", type=_listed(str), help="these methods alone")
    own.add_argument("--seeds", metavar="0,1", type=_listed(int), help="these seeds alone")
    images = "images of each split (where training's own analysis stays within 5 %% of training)"
    own.add_argument("--images", metavar="N", type=positive_integer, help=images)
    memory = "what a kernel may take: 2GiB, 500M"
    own.add_argument("--memory", metavar="SIZE", type=size, default=MEMORY, help=memory)
    own.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda")
    workers = "processes that decode images (as the run had)"
    own.add_argument("--workers", metavar="N", type=int, help=workers)
    own.add_argument("--again", action="store_true", help="make what is there already anew")
    options = own.parse_args(list(arguments))
    options.deep = tuple(name for name in PARTS if name in (options.deep or ()))
    return options


def _listed(kind: Any) -> Any:
    def read(text: str) -> tuple[Any, ...]:
        return tuple(map(kind, text.split(",")))

    read.__name__ = f"list of {kind.__name__}"  # argparse calls it so
    return read


def positive_integer(text: str) -> int:
    """At least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def size(text: str) -> int:
    """ "2GiB", "500M", "1e9" in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise ValueError
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def targets(
    folders: Sequence[Path],
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Target]:
    """Every method of every seed in the folders, in the order of the folders and of the runs.

    Args:
        folders: runs, parts of runs, or sweeps, whose finished cells are runs.
        methods: these alone.
        seeds: these alone.

    Raises:
        ConfigError: a folder that is no run, a method or seed that none of them has.
        RunDirectoryError: a run that is not finished.
    """
    found = [target for folder in folders for target in _in(folder)]
    for name, flag, wanted in (("method", "--methods", methods), ("seed", "--seeds", seeds)):
        have = list(dict.fromkeys(getattr(target, name) for target in found))
        if strange := [value for value in wanted or () if value not in have]:
            expected = f"some of: {', '.join(map(str, have))}"
            raise ConfigError(describe(flag, expected, ", ".join(map(str, strange))))
        found = [t for t in found if wanted is None or getattr(t, name) in wanted]
    for target in found:
        for number, (name, _) in enumerate(target.experiment.stages(target.method), 1):
            base = target.run_dir / f"seed-{target.seed}" / target.method
            stage = base / f"stage-{number}-{name}"
            for file in ("result.json", "best.safetensors"):
                if not (stage / file).is_file():
                    raise RunDirectoryError(_unfinished(target.run_dir, f"no {file} in '{stage}'"))
    return found


def _unfinished(folder: Path, got: str) -> str:
    fix = f"Finish it: python -m roli_fast.train --run_dir {folder} --resume"
    return describe("RUN", "a finished run", got, fix)


def _in(folder: Path) -> list[Target]:
    if (folder / SWEEP).is_file():
        cells = [path.parent for path in sorted(folder.glob(f"*/*/{CONFIG}"))]
        done = [cell for cell in cells if (cell / "validation.json").is_file()]
        if not done:
            got = f"none of {len(cells)} cells in '{folder}'"
            raise RunDirectoryError(_unfinished(folder, got))
        return [target for cell in done for target in _in(cell)]
    run_dir = next((path for path in (folder, *folder.parents) if (path / CONFIG).is_file()), None)
    if not folder.is_dir() or run_dir is None:
        fix = f"Name the folder that has the run's {CONFIG}, or one in it."
        expected = "a folder that python -m roli_fast.train wrote"
        raise ConfigError(describe("RUN", expected, f"'{folder}'", fix))
    experiment = SCHEMA.read(run_dir / CONFIG)
    inside = folder.relative_to(run_dir).parts[:2]
    found = [
        Target(run_dir, experiment, seed, method)
        for seed in experiment.seeds
        for method in experiment.methods
        if (f"seed-{seed}", method)[: len(inside)] == inside
    ]
    if not found:
        raise ConfigError(describe("RUN", "a run, or seed-S/METHOD in it", f"'{folder}'"))
    return found


def run(command: argparse.Namespace, *, quiet: bool = False) -> Iterator[str]:
    """Make what is missing or asked for, run by run; gives the lines to print.

    Args:
        command: what `parse` gives.
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
            context = Context(device, workers, 0.0, Recorder(None), interrupt, quiet=quiet)
            splits = splits.kept_on(device)
            for target in own:
                place = (target.experiment, splits, run_dir, target.seed, target.method, context)
                analysis = MethodAnalysis(*place, images=command.images)
                tested = (analysis.folder / "test.json").is_file()
                analysis = replace(analysis, test=tested)
                analysis.make(again=command.again)
                _make_deep(analysis, command)
            page = report.write(run_dir)
        methods = list(dict.fromkeys(target.method for target in own))
        yield f"{run_dir}:\n{analysis_table(run_dir, methods)}\nWritten: {page}\n"
    for folder in command.runs:
        if (folder / SWEEP).is_file() and (folder / "summary.json").is_file():
            yield f"Written: {report.write(folder)}"


def _open(target: Target, *, quiet: bool) -> tuple[Splits, int]:
    """The run's images and its number of threads.

    Raises:
        RunDirectoryError: the images are not those of the run.
        RoliFastError: they cannot be read.
    """
    experiment = target.experiment
    try:
        splits = experiment.data.load()
        hashes = inspect_images(all_parts({"data": splits}), decode=False, quiet=quiet)
    except RoliFastError as error:
        text = (
            f"the data of '{target.run_dir}': {error} Paths count from where the run was started."
        )
        raise type(error)(text) from error
    logger.info("%s: %s", target.run_dir, splits.summary())
    found = identity(experiment, {"data": splits}, hashes)
    del found["configuration"]  # fields of later versions are welcome
    saved = saved_environment(target.run_dir, found)
    if not saved:
        raise RunDirectoryError(
            f"`RUN`: '{target.run_dir}' has no environment.json, so nobody can tell whether these "
            "are its images. Put it back."
        )
    return splits, int(saved.get("threads") or torch.get_num_threads())


def _most(command: argparse.Namespace, classes: int) -> int:
    """Training images, and as many for validation, whose kernel in fp64 fits."""
    return most_inputs(classes, 8, command.memory) // 2


def check_budget(command: argparse.Namespace, classes: int) -> None:
    """Tell at once, before anything is made, that a kernel would not fit.

    Raises:
        ConfigError: N x C is above `command.memory`.
    """
    wanted, most = command.images or 1, _most(command, classes)
    if "kernel" not in command.deep or wanted <= most:
        return
    rows = 2 * wanted * classes
    what = f"at most {most} for a kernel of {classes} classes in {command.memory / 2**30:.3g} GiB"
    got = f"{wanted}: with as many validation images N x C = {rows:,}"
    fix = f"Take fewer, or --memory {COPIES * 8 * rows**2}, or --ft_ratio, which needs no kernel."
    raise ConfigError(describe("--images", what, got, fix))


def _make_deep(analysis: MethodAnalysis, command: argparse.Namespace) -> None:
    """Make the parts that are asked for and not there, into analysis.json; each is saved."""
    path, context = analysis.folder / FILE, analysis.context
    tree = read_analysis(path)
    for part in (PARTS[flag] for flag in command.deep):
        for number, stage in enumerate(tree["stages"], 1):
            context.check()
            if part.field in stage and not command.again:
                continue
            images = command.images or analysis.plan.points
            if part.field == "kernel" and not command.images:
                images = min(KERNEL_IMAGES, _most(command, analysis.splits.num_classes))
            start = _start(analysis, number, images, command.memory)
            if start is None:
                continue
            name = f"seed {analysis.seed} {analysis.method}/{stage['name']}/{part.field}"
            logger.info("%s takes about %s", name, _expected(part, start))
            began, work = time.perf_counter(), part.work(start)
            with context.bar(name, total=work.images) as bar:

                def after_batch(count: int, bar: Any = bar) -> None:
                    bar.update(count)
                    context.interrupt.check()

                stage[part.field] = part.make(replace(start, after_batch=after_batch))
            stage.setdefault("deep_seconds", {})[part.field] = time.perf_counter() - began
            write_json(path, tree)


def _start(analysis: MethodAnalysis, number: int, images: int, memory: int) -> Start | None:
    """Stage `number`, counted from 1, as it began, with so many images of each split; None where it
    trains the head alone: then no feature moves."""
    _, stage = analysis.experiment.stages(analysis.method)[number - 1]
    model = analysis.first_model(number)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not set(names) & set(LinearHead.of(model).backbone()):
        return None
    assert stage.optimizer.lr is not None, "more than the head trains"
    splits = analysis.splits
    return Start(
        model=model,
        names=names,
        train=partial(analysis.images_of, splits.train, images),
        validation=partial(analysis.images_of, splits.val, images),
        attack=analysis.plan.attack,
        lr=stage.optimizer.lr,
        optimizer=stage.optimizer.name,
        optimize=stage.optimizer.build,
        counts=(min(images, len(splits.train)), min(images, len(splits.val))),
        attacks=stage.attack is not None,
        seed=analysis.draws,
        memory=memory,
    )


def _expected(part: Part, start: Start) -> str:
    """How long it takes, by a forward and a product of matrices in fp64 that are measured."""
    x = next(iter(start.train())).x
    x = x[:1] if part.one_by_one else x
    square = torch.ones(256, 256, dtype=torch.float64, device=x.device)

    def fastest(work: Callable[[], object]) -> float:
        return min(timeit.repeat(work, number=1, repeat=3))  # the first one warms up

    with torch.no_grad():
        forward = fastest(lambda: start.model(x).sum().item()) / len(x)
        product = fastest(lambda: (square @ square).sum().item()) / (2 * 256**3)
    work = part.work(start)
    seconds = work.forwards * forward + work.flop * product
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake, 128 + the signal's
    number after one)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        for line in run(parse(sys.argv[1:] if arguments is None else arguments)):
            print(line)
        return 0
    except InterruptedRunError as error:
        logger.error("%s; finished parts are saved: the same command goes on", error)
        return 128 + error.args[1]
    except KeyboardInterrupt:
        logger.error("stopped at once; the same command goes on after the last finished part")
        return 128 + signal.SIGINT
    except RoliFastError as error:
        logger.error("error: %s", error)
        return 2


if __name__ == "__main__":
    run_command(main)
