"""A run from beginning to end: pretraining, the stages of each method, the test, the summary."""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from roli_fast.data import Splits
from roli_fast.errors import ConfigError, DataError, describe
from roli_fast.evaluate import evaluate
from roli_fast.files import write_json
from roli_fast.models import Classifier
from roli_fast.running.device import pick_device
from roli_fast.running.environment import say_what_changed
from roli_fast.running.ranks import Ranks
from roli_fast.running.signals import Interrupt
from roli_fast.running.team import Team
from roli_fast.seeds import derive_seed
from roli_fast.train.analysis import MethodAnalysis
from roli_fast.train.checks import Checked, check
from roli_fast.train.context import Context, counter
from roli_fast.train.experiment import Experiment
from roli_fast.train.linear_probe import solve_stage
from roli_fast.train.loop import run_stage
from roli_fast.train.metrics import Recorder
from roli_fast.train.postprocess import analyse, write_report
from roli_fast.train.run_directory import (
    as_test,
    open_run_dir,
    read_result,
    read_test,
    saved_environment,
    write_environment,
)
from roli_fast.train.stage import Job, Stage, StageResult
from roli_fast.train.starting import (
    finish,
    fresh_model,
    pretrain_folder,
    stage_folder,
    untuned_model,
)
from roli_fast.train.summary import summarise


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
        team = undo.enter_context(Team(ranks).joined(device))
        run_dir = Path(team.from_first(str(run_dir)))
        begun = resume and (run_dir / "environment.json").is_file()
        ready = check(experiment, decode=not begun, quiet=quiet or not team.leads)
        _check_same_images(team.gather(ready.identity))
        threads = 0
        if team.leads:
            undo.enter_context(open_run_dir(run_dir, experiment, resume=resume))
            threads = _recorded(experiment, run_dir, ready, device, team.world)
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(team.from_first(threads))
        recorder = undo.enter_context(Recorder(run_dir if team.leads else None))
        with Interrupt() as interrupt:
            context = Context(
                device=device,
                workers=experiment.workers,
                checkpoint_minutes=experiment.checkpoint_minutes,
                recorder=recorder,
                interrupt=interrupt,
                quiet=quiet,
                team=team,
            )
            data = ready.data.kept_on(device)
            source = ready.source.kept_on(device) if ready.source else None
            return Pipeline(experiment, run_dir, context, test).run(data, source)


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
    test: bool = True

    def run(self, splits: Splits, source: Splits | None) -> dict[str, Any]:
        """All seeds, all methods; returns the summary, or the validation alone."""
        experiment, run_dir = self.experiment, self.run_dir
        outcomes: dict[str, list[dict[str, Any]]] = {m: [] for m in experiment.methods}
        pretrained: list[dict[str, Any]] = []
        for seed in experiment.seeds:
            if source:
                folder = pretrain_folder(run_dir, seed)
                model = fresh_model(experiment, source, seed)
                job = self._job("pretrain", experiment.pretrain, model, source, seed, folder)
                pretrained.append(asdict(self._stage(job)))
            for method in experiment.methods:
                outcomes[method].append(self._method(method, splits, seed))
        if not self.test:
            self._write(run_dir / "validation.json", outcomes)
            return outcomes
        summary = summarise(experiment, splits, outcomes, pretrained)
        self._write(run_dir / "summary.json", summary)
        write_report(experiment, run_dir, self.context)
        return summary

    def _write(self, path: Path, value: Any) -> None:
        if self.context.team.leads:
            write_json(path, value)

    def _method(self, method: str, splits: Splits, seed: int) -> dict[str, Any]:
        """The stages of one method and its test."""
        results: list[dict[str, Any]] = []
        model: Classifier | None = None
        for number, (name, stage) in enumerate(self.experiment.stages(method), 1):
            model = untuned_model(self.experiment, splits, seed, method, number, self.run_dir)
            folder = stage_folder(self.run_dir, seed, method, number, name)
            job = self._job(name, stage, model, splits, seed, folder, method)
            results.append(asdict(self._stage(job)))
        assert model is not None, "every method has a stage"
        outcome = {"seed": seed, "stages": results}
        if self.test:
            path = self.run_dir / f"seed-{seed}" / method / "test.json"
            outcome["test"] = self._test(model, splits, seed, path)
        place = (self.experiment, splits, self.run_dir, seed, method, self.context)
        analyse(MethodAnalysis(*place, test=self.test))
        return outcome

    def _job(  # noqa: PLR0913 - what one stage is made of
        self,
        name: str,
        stage: Stage,
        model: Classifier,
        splits: Splits,
        seed: int,
        folder: Path,
        method: str = "source",
    ) -> Job:
        return Job(
            stage=stage,
            model=model.to(self.context.device),
            splits=splits,
            threat=self.experiment.threat,
            validation=self.experiment.compat.attack(self.experiment.validation),
            seed=seed,
            folder=folder,
            place={"seed": seed, "method": method, "stage": name},
        )

    def _stage(self, job: Job) -> StageResult:
        """Run a stage, or read its result if it is finished; the model ends with its weights."""
        self.context.check()
        done = job.folder / "result.json"
        if self.context.team.from_first(done.is_file()):
            finish(job.model, job.stage, job.folder, seed=job.seed)
            return read_result(done)
        return (solve_stage if job.stage.solves else run_stage)(job, self.context)

    def _test(self, model: Classifier, splits: Splits, seed: int, path: Path) -> dict[str, Any]:
        """Accuracy on the test split, with the flags of every sample for paired tests."""
        if self.context.team.from_first(path.is_file()):
            return read_test(path, self.experiment)
        stage, split, world = self.experiment.finetune, splits.test, self.context.team.world
        guard = stage.memory_guard("finetune", self.context.device)
        title = f"seed {seed} {path.parent.name}/test"
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
