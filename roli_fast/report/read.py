"""What a run left on disk, read for the page; nothing is computed by running a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roli_fast.configuration import read_yaml
from roli_fast.errors import ConfigError, RunDirectoryError, describe
from roli_fast.files import parse_json, read_json, told
from roli_fast.report.shape import ANALYSIS, RESULT, TEST, wrong, wrong_summary
from roli_fast.report.text import listed
from roli_fast.running.folder import CONFIG

Tree = dict[str, Any]

SCHEMA = 1
"""Of analysis.json."""

PLACE = {"seed": int, "method": str, "stage": str, "epoch": int}
"""What every record of metrics.jsonl names; everything else in it is a number."""


@dataclass(frozen=True)
class Seed:
    """One seed of a method: stages that finished, the test and the analysis where they are."""

    number: int
    stages: Sequence[Tree]
    test: Tree | None
    analysis: Tree | None


@dataclass(frozen=True)
class Method:
    """One method of a run.

    Args:
        name: "roli" say.
        folder: the run directory, or of a sweep that of the chosen cell.
        seeds: what each seed found; empty before the first stage has finished.
        test: means and spreads over the seeds as summary.json has them; None without a test.
        metrics: the records of metrics.jsonl, all seeds.
    """

    name: str
    folder: Path
    seeds: Sequence[Seed]
    test: Tree | None
    metrics: Sequence[Tree] = field(repr=False, default=())

    @property
    def analyses(self) -> list[Tree]:
        """Those of the seeds that have one."""
        return [seed.analysis for seed in self.seeds if seed.analysis]

    @property
    def stage_names(self) -> list[str]:
        """Of the first seed, in order."""
        return [stage["name"] for stage in self.seeds[0].stages] if self.seeds else []


@dataclass(frozen=True)
class Run:
    """A run directory as its files describe it.

    Args:
        folder: the run directory.
        config: config.yaml, as plain values.
        summary: summary.json, None while the run is not finished.
        environment: environment.json, empty where there is none.
        methods: in the run's order.
        metrics: every record of metrics.jsonl, with those of pretraining.
        evaluations: folder of the file -> evaluation.json, of those lying in the run directory.
        files: every file that was read, in order.
        damaged: what could not be read, one line a file.
    """

    folder: Path
    config: Tree
    summary: Tree | None
    environment: Tree
    methods: Sequence[Method]
    metrics: Sequence[Tree] = field(repr=False)
    evaluations: Mapping[Path, Tree] = field(repr=False)
    files: Sequence[Path] = field(repr=False)
    damaged: Sequence[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def columns(self) -> list[str]:
        """The columns of robust accuracy: the attack's label, or each norm and their union."""
        tests = [m.test for m in self.methods if m.test]
        return list(tests[0]["robust_accuracy"]) if tests else []


def read(folder: Path, without: Mapping[Path, str] | None = None) -> Run:
    """Read a run directory.

    Args:
        folder: of the run.
        without: files that are passed over as damaged, and what is wrong with them.

    Raises:
        RunDirectoryError: it is none, or its summary or configuration cannot be read.
    """
    files = _Files(folder, without or {})
    try:
        config = read_yaml(folder / CONFIG)
    except ConfigError as error:
        fix = "Name a folder that python -m roli_fast.train wrote."
        raise RunDirectoryError(
            describe("run", "a run directory with its config.yaml", f"'{folder}'", fix)
        ) from error
    if "methods" not in config and "finetune" not in config:
        got = f"'{folder}', whose config.yaml is of something else"
        raise RunDirectoryError(describe("run", "a training run's directory", got))
    files.read.append(folder / CONFIG)
    summary = files.json("summary.json", needed=True)
    if summary is not None and (told := wrong_summary(summary)[:200]):
        got = f"'{folder / 'summary.json'}', {told}"
        raise RunDirectoryError(describe("run", "a summary that roli_fast.train wrote", got))
    environment = files.json("environment.json") or {}
    methods = _methods(files, config, summary)
    metrics = files.lines("metrics.jsonl")
    evaluations = {
        path.parent: tree
        for path in sorted(folder.rglob("evaluation.json"))
        if (tree := files.json(path.relative_to(folder), check=_is_evaluation)) is not None
    }
    return Run(
        folder, config, summary, environment, methods, metrics, evaluations, files.read, files.bad
    )


class _Files:
    """Reads files and remembers which."""

    def __init__(self, folder: Path, without: Mapping[Path, str]) -> None:
        self.folder, self.without = folder, without
        self.read: list[Path] = []
        self.bad: list[str] = []

    def json(
        self,
        path: str | Path,
        *,
        needed: bool = False,
        check: Callable[[Tree], str] = lambda _tree: "",
    ) -> Tree | None:
        """A JSON object; None where there is no such file, or where it is damaged.

        Raises:
            RunDirectoryError: it is `needed` and damaged.
        """
        file = self.folder / path
        if not self._usable(file):
            return None
        try:
            tree = read_json(file)
            wrong = check(tree) if isinstance(tree, dict) else "not a JSON object"
            if wrong:
                raise ValueError(wrong)
        except Exception as error:  # whatever a damaged file makes of it
            if needed:
                got = f"'{file}': {told(error)}"
                raise RunDirectoryError(describe("run", "readable files", got)) from error
            self.bad.append(f"{path}: {told(error)}")
            return None
        self.read.append(file)
        return tree

    def _usable(self, file: Path) -> bool:
        if file in self.without:
            self.bad.append(f"{file.relative_to(self.folder)}: {self.without[file]}")
        return file.is_file() and file not in self.without

    def lines(self, path: str | Path) -> list[Tree]:
        """The records of a file of JSON lines; one cut short by a killed run is passed over."""
        file = self.folder / path
        if not self._usable(file):
            return []
        records = []
        self.read.append(file)
        records, damaged = read_records(file)
        if damaged:
            self.bad.append(f"{path}: lines {listed([str(number) for number in damaged])}")
        return records


def read_records(file: Path) -> tuple[list[Tree], list[int]]:
    """The records of a metrics.jsonl, and the numbers of its damaged lines; a last line that a
    killed run cut short is passed over."""
    records, damaged = [], []
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line.decode())
            if not all(isinstance(v, PLACE.get(k, (int, float))) for k, v in record.items()):
                raise ValueError("a field of another type")
            if not (record.keys() >= PLACE.keys() and record["epoch"] >= 0):
                raise ValueError("no place")
            records.append(record)
        except (ValueError, AttributeError):
            if number < len(lines):
                damaged.append(number)
    return records, damaged


def _methods(files: _Files, config: Tree, summary: Tree | None) -> list[Method]:
    names = list((summary or config).get("methods") or ())
    chosen = {
        row["method"]: row["folder"]
        for row in ((summary or {}).get("sweep") or {"cells": ()})["cells"]
        if row["chosen"]
    }
    found, records = [], {}
    for name in names:
        cell = Path(chosen.get(name, "."))
        if cell not in records:
            records[cell] = files.lines(cell / "metrics.jsonl")
        if summary:
            entry = summary["methods"][name]
            runs = entry["per_seed"]
        else:
            entry, runs = {}, _unfinished(files, name, config)
        seeds = [
            Seed(
                run["seed"],
                run["stages"],
                run.get("test"),
                files.json(
                    cell / f"seed-{run['seed']}" / name / "analysis.json", check=wrong_analysis
                ),
            )
            for run in runs
        ]
        own = [r for r in records[cell] if r["method"] == name]
        found.append(Method(name, files.folder / cell, seeds, entry.get("test"), own))
    return found


def _unfinished(files: _Files, method: str, config: Tree) -> list[Tree]:
    """Stages and tests of the seeds so far."""
    runs = []
    for seed in config.get("seeds") or (0,):
        base = Path(f"seed-{seed}") / method
        stages = [
            files.json(path.relative_to(files.folder), check=lambda tree: wrong(tree, RESULT))
            for path in sorted(files.folder.glob(f"{base}/stage-*/result.json"))
        ]
        test = files.json(base / "test.json", check=lambda tree: wrong(tree, TEST))
        if any(stages) or test:
            runs.append({"seed": seed, "stages": [s for s in stages if s], "test": test})
    return runs


def wrong_analysis(tree: Tree) -> str:
    """What is wrong with analysis.json; empty for nothing."""
    if tree.get("schema") != SCHEMA:
        return f"schema {tree.get('schema')!r}, and this version reads {SCHEMA}"
    return wrong(tree, ANALYSIS)[:200]


def _is_evaluation(tree: Tree) -> str:
    known = {"clean", "norms", "images", "data"} <= tree.keys()
    return "" if known else "not an evaluation of this version"


def values(trees: Sequence[Tree], *path: str | int) -> list[float]:
    """The finite numbers at `path` in the trees that have one there."""
    found = [at(tree, *path) for tree in trees]
    return [float(v) for v in found if isinstance(v, (int, float)) and math.isfinite(v)]


def at(tree: Any, *path: str | int) -> Any:
    """What is at `path`; None where a step is missing."""
    for step in path:
        try:
            tree = tree[step]
        except (KeyError, IndexError, TypeError):
            return None
    return tree
