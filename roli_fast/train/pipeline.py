"""A run from beginning to end: pretraining, the stages of each method, the test, the summary."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from roli_fast.data import Splits
from roli_fast.errors import ConfigError, describe
from roli_fast.evaluate import UNION, evaluate
from roli_fast.evaluate.shares import to_text
from roli_fast.files import write_json
from roli_fast.models import Classifier
from roli_fast.running.device import pick_device
from roli_fast.running.environment import say_what_changed
from roli_fast.running.ranks import Ranks
from roli_fast.running.signals import Interrupt
from roli_fast.running.team import Team
from roli_fast.seeds import derive_seed
from roli_fast.train.analysis import MethodAnalysis
from roli_fast.train.checks import Checked, check, check_same_images
from roli_fast.train.context import Context, counter
from roli_fast.train.experiment import Experiment
from roli_fast.train.images import leave_out, record_images
from roli_fast.train.linear_probe import solve_stage
from roli_fast.train.loop import run_stage
from roli_fast.train.metrics import NoRecorder, Recorder
from roli_fast.train.postprocess import analyse, write_report
from roli_fast.train.run_directory import (
    identity,
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
        begun = run_dir if resume else None
        ready = check(experiment, begun=begun, quiet=quiet or not team.leads)
        threads = ready.threads
        found = identity(experiment, ready.splits, ready.hashes)
        check_same_images(team.gather(found))
        if team.leads:
            undo.enter_context(open_run_dir(run_dir, experiment, resume=resume))
            threads = _recorded(experiment, run_dir, ready, found, device, team.world)
        threads = team.from_first(threads)
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        recorder = Recorder(run_dir) if team.leads else NoRecorder()
        undo.callback(recorder.close)
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


def _recorded(  # noqa: PLR0913 - what a run begins with
    experiment: Experiment,
    run_dir: Path,
    ready: Checked,
    found: Mapping[str, str],
    device: torch.device,
    world: int,
) -> int:
    """Record what a new run begins with, or see that it is what it was; returns its threads."""
    leave_out(run_dir, ready.dropped)
    saved = saved_environment(run_dir, found)
    say_what_changed(saved.get("packages") or {})
    threads = experiment.threads or saved.get("threads") or ready.threads
    if not saved:
        record_images(run_dir, ready.splits, ready.hashes)
        write_environment(run_dir, device, threads, world, found)
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
        experiment = self.experiment
        outcomes: dict[str, list[dict[str, Any]]] = {m: [] for m in experiment.methods}
        pretrained: list[StageResult] = []
        for seed in experiment.seeds:
            if source:
                pretrained.append(self._pretrain(source, seed))
            for method in experiment.methods:
                outcomes[method].append(self._method(method, splits, seed))
        if not self.test:
            self._write(self.run_dir / "validation.json", outcomes)
            return outcomes
        summary = summarise(experiment, splits, outcomes, [asdict(r) for r in pretrained])
        self._write(self.run_dir / "summary.json", summary)
        write_report(experiment, self.run_dir, self.context)
        return summary

    def _write(self, path: Path, value: Any) -> None:
        if self.context.team.leads:
            write_json(path, value)

    def _pretrain(self, source: Splits, seed: int) -> StageResult:
        """Robust pretraining on the source images."""
        model = fresh_model(self.experiment, source, seed)
        folder = pretrain_folder(self.run_dir, seed)
        stage = self.experiment.pretrain
        return self._stage("pretrain", "source", stage, model, source, seed, folder)

    def _method(self, method: str, splits: Splits, seed: int) -> dict[str, Any]:
        """The stages of one method and its test."""
        results: list[StageResult] = []
        model: Classifier | None = None
        for number, (name, stage) in enumerate(self.experiment.stages(method), 1):
            model = untuned_model(self.experiment, splits, seed, method, number, self.run_dir)
            folder = stage_folder(self.run_dir, seed, method, number, name)
            results.append(self._stage(name, method, stage, model, splits, seed, folder))
        assert model is not None, "every method has a stage"
        outcome = {"seed": seed, "stages": [asdict(result) for result in results]}
        if self.test:
            path = self.run_dir / f"seed-{seed}" / method / "test.json"
            outcome["test"] = self._test(model, splits, seed, path)
        place = (self.experiment, splits, self.run_dir, seed, method, self.context)
        analyse(MethodAnalysis(*place, test=self.test))
        return outcome

    def _stage(  # noqa: PLR0913 - what one stage is made of
        self,
        name: str,
        method: str,
        stage: Stage,
        model: Classifier,
        splits: Splits,
        seed: int,
        folder: Path,
    ) -> StageResult:
        """Run a stage, or read its result if it is finished; the model ends with its weights."""
        self.context.check()
        model.to(self.context.device)
        done = folder / "result.json"
        if self.context.team.from_first(done.is_file()):
            finish(model, stage, folder, seed=seed)
            return read_result(done)
        job = Job(
            stage=stage,
            model=model,
            splits=splits,
            threat=self.experiment.threat,
            validation=self.experiment.compat.attack(self.experiment.validation),
            seed=seed,
            folder=folder,
            place={"seed": seed, "method": method, "stage": name},
        )
        return (solve_stage if stage.solves else run_stage)(job, self.context)

    def _test(self, model: Classifier, splits: Splits, seed: int, path: Path) -> dict[str, Any]:
        """Accuracy on the test split, with the flags of every sample for paired tests."""
        if self.context.team.from_first(path.is_file()):
            return read_test(path, self.experiment)
        experiment, stage = self.experiment, self.experiment.finetune
        split, world = splits.test, self.context.team.world
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
                experiment.evaluations("test"),
                seed=derive_seed(seed, "test"),
                after_batch=after_batch,
            )
        result = self.context.whole(own, split)
        robust, shares = dict(result.robust), result.robust_accuracy
        if len(robust) > 1:
            robust[UNION], shares[UNION] = result.union, result.union_accuracy
        test = {
            "images": len(result.clean),
            "clean_accuracy": result.clean_accuracy,
            "robust_accuracy": shares,
            "clean_flags": to_text(result.clean),
            "robust_flags": {name: to_text(flags) for name, flags in robust.items()},
        }
        self._write(path, test)
        return test
