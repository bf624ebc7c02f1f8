"""What the folders named on the command line hold: runs, and which seeds and methods of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roli_fast.errors import ConfigError, RunDirectoryError, describe
from roli_fast.running.folder import CONFIG
from roli_fast.train.experiment import SCHEMA, Experiment
from roli_fast.train.starting import stage_folder
from roli_fast.train.sweep import SWEEP


@dataclass(frozen=True)
class Target:
    """One finished training: a method of a seed of a run."""

    run_dir: Path
    experiment: Experiment
    seed: int
    method: str


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
        check_finished(target)
    return found


def check_finished(target: Target) -> None:
    """Raise RunDirectoryError unless every stage of the target has ended."""
    run_dir, method, seed = target.run_dir, target.method, target.seed
    for number, (name, _) in enumerate(target.experiment.stages(method), 1):
        folder = stage_folder(run_dir, seed, method, number, name)
        missing = [
            file for file in ("result.json", "best.safetensors") if not (folder / file).is_file()
        ]
        if missing:
            got = f"no {missing[0]} in '{folder}'"
            fix = f"Finish it: python -m roli_fast.train --run_dir {run_dir} --resume"
            raise RunDirectoryError(describe("RUN", "a finished run", got, fix))


def _in(folder: Path) -> list[Target]:
    if (folder / SWEEP).is_file():
        cells = [path.parent for path in sorted(folder.glob(f"*/*/{CONFIG}"))]
        done = [cell for cell in cells if (cell / "validation.json").is_file()]
        if not done:
            fix = f"Finish it: python -m roli_fast.train --run_dir {folder} --resume"
            got = f"none of {len(cells)} in '{folder}'"
            raise RunDirectoryError(describe("RUN", "a sweep with finished cells", got, fix))
        return [target for cell in done for target in _in(cell)]
    run_dir = next((path for path in (folder, *folder.parents) if (path / CONFIG).is_file()), None)
    if not folder.is_dir() or run_dir is None:
        got = f"'{folder}'" + ("" if folder.is_dir() else ", which is no folder")
        fix = f"Name the folder that has the run's {CONFIG}, or one in it."
        expected = "a folder that python -m roli_fast.train wrote"
        raise ConfigError(describe("RUN", expected, got, fix))
    experiment = SCHEMA.read(run_dir / CONFIG)
    every = [
        Target(run_dir, experiment, seed, method)
        for seed in experiment.seeds
        for method in experiment.methods
    ]
    inside = folder.relative_to(run_dir).parts[:2]
    found = [t for t in every if (f"seed-{t.seed}", t.method)[: len(inside)] == inside]
    if not found:
        got = f"'{folder}'"
        raise ConfigError(describe("RUN", "a run, or seed-S/METHOD in it", got))
    return found
