"""A run from beginning to end: pretraining, the stages of each method, the test, the analysis, the
summary and the report."""

import contextlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roli_fast import report
from roli_fast.configuration import flat
from roli_fast.data import Splits
from roli_fast.errors import ConfigError, DataError, InterruptedRunError, PeerError, describe
from roli_fast.evaluate import evaluate
from roli_fast.files import write_json
from roli_fast.models import Classifier
from roli_fast.running.device import pick_device
from roli_fast.running.distributed import Distributed
from roli_fast.running.environment import say_what_changed
from roli_fast.running.ranks import Ranks
from roli_fast.running.signals import Interrupt
from roli_fast.seeds import derive_seed
from roli_fast.train.analysis import EXAMPLES, MethodAnalysis
from roli_fast.train.checks import Checked, check
from roli_fast.train.context import Context, Recorder, Remaining, counter
from roli_fast.train.experiment import SCHEMA, STAGES, Experiment
from roli_fast.train.linear_probe import solve_stage
from roli_fast.train.loop import run_stage
from roli_fast.train.run_directory import (
    RunStage,
    as_test,
    open_run_dir,
    read_test,
    run_stages,
    saved_environment,
    write_environment,
)
from roli_fast.train.stage import Job, StageResult
from roli_fast.train.summary import summarise

logger = logging.getLogger("roli_fast.train")


def run(
    experiment: Experiment,
    run_dir: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    test: bool = True,
) -> dict[str, Any]:
    """Run an experiment in `run_dir`, or go on with it there.

    Data, model and configuration are checked before the folder is made. Finished stages and tests
    are read from it, so a resume of a finished run only writes the summary once more.

    Processes that torchrun started share the run, each with its part of every batch and split: all
    call this at once with the same arguments, see the same folder (the first one's counts) and
    return the same. A resume may have another number of them.

    Args:
        experiment: what to run.
        run_dir: a new or empty folder, or with `resume` one that an earlier call left.
        resume: go on from there.
        quiet: no progress bars.
        test: look at the test split at the end. Without, a run can be chosen by its validation
            accuracy; a later call with `resume` tests it.

    Returns:
        What summary.json holds; without `test` what validation.json holds, method -> seeds.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM came; the position is saved.
        RunDirectoryError: the folder is in use, or holds another experiment or other images.
        RoliFastError: anything else that a user can mend.
    """
    ranks = Ranks.from_environment()
    if ranks.world > 1 and experiment.device.startswith("cuda:"):
        fix = "Write cuda: each process takes its own."
        raise ConfigError(describe("device", "no one GPU for all", experiment.device, fix))
    device = pick_device(ranks.device(experiment.device))
    with contextlib.ExitStack() as undo:
        distributed = undo.enter_context(Distributed(ranks).joined(device))
        run_dir = Path(distributed.broadcast(str(run_dir)))
        begun = resume and (run_dir / "environment.json").is_file()
        ready = check(experiment, decode=not begun, quiet=quiet or not distributed.is_main)
        _check_same_images(distributed.all_gather(ready.identity))
        threads = 0
        if distributed.is_main:
            undo.enter_context(open_run_dir(run_dir, experiment, resume=resume))
            logger.info("run directory: %s", run_dir)
            threads = _recorded(experiment, run_dir, ready, device, distributed.world_size)
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(distributed.broadcast(threads))
        recorder = undo.enter_context(Recorder(run_dir if distributed.is_main else None))
        with Interrupt() as interrupt:
            context = Context(
                device=device,
                workers=experiment.workers,
                checkpoint_minutes=experiment.checkpoint_minutes,
                recorder=recorder,
                interrupt=interrupt,
                quiet=quiet,
                distributed=distributed,
            )
            data = ready.data.kept_on(device)
            source = ready.source.kept_on(device) if ready.source else None
            return Pipeline(experiment, run_dir, context, data, source, test).run()


def _check_same_images(found: list[dict[str, str]]) -> None:
    """Each process read the data for itself."""
    for rank, other in enumerate(found):
        if other != found[0]:
            names = [name for name in found[0] if other.get(name) != found[0][name]]
            got = f"another {', another '.join(names)} in process {rank}"
            fix = "All must read the same files."
            raise DataError(describe("data", "the same in every process", got, fix))


def _recorded(
    experiment: Experiment, run_dir: Path, ready: Checked, device: torch.device, world: int
) -> int:
    """Record what a new run begins with, or see that it is what it was; returns its threads."""
    saved = saved_environment(run_dir, ready.identity)
    say_what_changed(saved.get("packages") or {})
    threads = experiment.threads or saved.get("threads") or ready.threads
    if not saved:
        write_environment(run_dir, device, threads, world, ready.identity)
    return threads


@dataclass
class Pipeline:
    """Holds what the steps of one run share."""

    experiment: Experiment
    run_dir: Path
    context: Context
    splits: Splits
    source: Splits | None
    test: bool = True

    def run(self) -> dict[str, Any]:
        """All seeds, all methods; returns the summary, or the validation alone."""
        experiment = self.experiment
        self._say_what_is_left()
        outcomes: dict[str, list[dict[str, Any]]] = {m: [] for m in experiment.methods}
        pretrained: list[dict[str, Any]] = []
        for seed in experiment.seeds:
            pretrained += [asdict(self._stage(one)[1]) for one in self._stages(seed, "source")]
            for method in experiment.methods:
                outcomes[method].append(self._method(method, seed))
        if not self.test:
            self._write(self.run_dir / "validation.json", outcomes)
            return outcomes
        summary = summarise(experiment, self.splits, outcomes, pretrained)
        self._write(self.run_dir / "summary.json", summary)
        if experiment.report and self.context.distributed.is_main:
            report_or_warn(self.run_dir)
        return summary

    def _stages(self, seed: int, method: str) -> list[RunStage]:
        """The stages of a method, or that of "source" where there is one, in their order."""
        if method != "source":
            return run_stages(self.experiment, self.splits, self.run_dir, seed, method)
        if self.source is None:
            return []
        return [RunStage(self.experiment, self.source, self.run_dir, seed, method)]

    def _say_what_is_left(self) -> None:
        """Log which stages there are, and note what those that are not finished will take."""
        experiment, distributed = self.experiment, self.context.distributed
        methods = ["source", *experiment.methods]
        stages = [one for s in experiment.seeds for m in methods for one in self._stages(s, m)]
        first = [one for one in stages if one.seed == experiment.seeds[0]]
        try:
            looks = experiment.evaluations("validation").values()
            costs = {
                (one.method, one.name): one.stage.passes(experiment.threat, looks, one.splits)
                for one in first
            }
        except Exception as error:  # an estimate ends no run
            logger.warning("how long it takes is not known: %s: %s", type(error).__name__, error)
            return
        done = distributed.broadcast([one.finished for one in stages])
        left = [one for one, finished in zip(stages, done, strict=True) if not finished]
        passes = {tuple(one.stage_id.values()): costs[one.method, one.name] for one in left}
        self.context.remaining = Remaining(passes, len(stages))
        if left:
            shown = [f"{one.method}/{one.name} ({one.stage.epochs} epochs)" for one in first]
            seeds = f", for {len(experiment.seeds)} seeds" if len(experiment.seeds) > 1 else ""
            finished = f"; {len(stages) - len(left)} of them finished" if any(done) else ""
            count = "one stage" if len(stages) == 1 else f"{len(stages)} stages"
            logger.info("%s: %s%s%s", count, ", ".join(shown), seeds, finished)

    def _write(self, path: Path, value: Any) -> None:
        if self.context.distributed.is_main:
            write_json(path, value)

    def _method(self, method: str, seed: int) -> dict[str, Any]:
        """The stages of one method, its test and its analysis."""
        found = [self._stage(one) for one in self._stages(seed, method)]
        model, results = found[-1][0], [asdict(result) for _, result in found]
        outcome = {"seed": seed, "stages": results}
        if self.test:
            outcome["test"] = self._test(model, seed, method)
        place = (self.experiment, self.splits, self.run_dir, seed, method, self.context)
        analyse(MethodAnalysis(*place, test=self.test))
        if self.context.distributed.is_main:
            self._show(method, seed, outcome)
        return outcome

    def _stage(self, stage: RunStage) -> tuple[Classifier, StageResult]:
        """Run a stage, or read its result if it is finished; its model has its weights."""
        self.context.check()
        model = stage.untuned_model().to(self.context.device)
        if self.context.distributed.broadcast(stage.finished):
            return stage.finish(model), stage.result()
        job = Job(
            stage=stage.stage,
            model=model,
            splits=stage.splits,
            threat=self.experiment.threat,
            validation=self.experiment.validated_by,
            seed=stage.seed,
            folder=stage.folder,
            stage_id=stage.stage_id,
            on_collapse=self.experiment.on_collapse,
        )
        return model, (solve_stage if job.stage.solves else run_stage)(job, self.context)

    def _test(self, model: Classifier, seed: int, method: str) -> dict[str, Any]:
        """Accuracy on the test split, with the flags of every sample for paired tests; in parts and
        by an engine as of the method's last stage."""
        path = self.run_dir / f"seed-{seed}" / method / "test.json"
        if self.context.distributed.broadcast(path.is_file()):
            return read_test(path, self.experiment)
        name, stage = self.experiment.stages(method)[-1]
        split = self.splits.test
        world = self.context.distributed.world_size
        guard = stage.memory_guard(name, self.context.device)
        title = f"seed {seed} {method}/test"
        with guard, self.context.bar(title, total=len(split)) as bar:
            move = counter(bar, world)

            def after_batch(count: int) -> None:
                move(count)
                self.context.check()

            own = evaluate(
                model,
                self.context.evaluation_batches(split, stage.part_size(world)),
                self.experiment.evaluations("test"),
                seed=derive_seed(seed, "test"),
                engine=stage.evaluation_engine,
                after_batch=after_batch,
            )
        whole = self.context.whole(own, split)
        test = as_test(whole.clean, whole.robust)
        self._write(path, test)
        return test

    def _show(self, method: str, seed: int, outcome: dict[str, Any]) -> None:
        """In TensorBoard: what the method was given beside what its test found, and examples."""
        unread = set(STAGES) - self.experiment.read_stages(method)
        tree = {k: v for k, v in SCHEMA.to_tree(self.experiment).items() if k not in unread}
        given = {"method": method, "seed": seed} | flat(tree)
        plain = {k: v for k, v in given.items() if isinstance(v, (str, int, float))}
        test = outcome.get("test", {})
        found = {f"test/{n}_accuracy": v for n, v in test.get("robust_accuracy", {}).items()}
        found |= {"test/clean_accuracy": test["clean_accuracy"]} if test else {}
        examples = self.run_dir / f"seed-{seed}" / method / EXAMPLES

        def draw(writer: Any) -> None:
            if found:
                writer.add_hparams(plain, found, run_name=".")
            if examples.is_file():
                with np.load(examples) as images:
                    for name in ("clean", "adversarial"):
                        writer.add_images(f"examples/{name}", images[name], dataformats="NHWC")

        self.context.recorder.show(f"seed-{seed}/{method}", draw)


def analyse(analysis: MethodAnalysis) -> None:
    """Make a method's light analysis, in the leading process; the others wait.

    An analysis that fails loses nothing of the run: it is told, with the command that repeats it.

    Raises:
        InterruptedRunError: a signal came; a resume makes the analysis anew.
        PeerError: another process is gone.
    """
    distributed = analysis.context.distributed
    if not distributed.is_main:
        while distributed.broadcast(None):  # a word between two batches, see `MethodAnalysis.watch`
            analysis.context.check()
        return
    try:
        if analysis.experiment.analysis_images:
            analysis.make()
    except (InterruptedRunError, PeerError):
        raise
    except Exception as error:  # whatever it is, hours of training are worth more
        analysis.context.interrupt.check()  # a signal that ended the decoding workers is a stop
        again = f"python -m roli_fast.analyze {analysis.folder}"
        kind = type(error).__name__
        logger.warning("no analysis of %s: %s: %s", analysis.folder, kind, error)
        logger.warning("the run goes on; repeat the analysis with: %s", again)
    distributed.broadcast(False)


def report_or_warn(run_dir: Path) -> None:
    """Write report.html, or tell why there is none: a page that cannot be drawn must not fail a
    finished run."""
    try:
        report.write(run_dir)
    except Exception as error:
        logger.warning("no report.html: %s: %s", type(error).__name__, error)
        logger.warning("repeat it with: python -m roli_fast.report %s", run_dir)
