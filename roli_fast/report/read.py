"""What a run left on disk, read for the page; nothing is computed by running a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from roli_fast.configuration import read_yaml
from roli_fast.errors import ConfigError, RunDirectoryError, describe
from roli_fast.evaluate.report import picture_name
from roli_fast.files import naming, parse_json, read_json, told
from roli_fast.report.text import listed
from roli_fast.running.folder import CONFIG

Tree = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]

SCHEMA = 1
"""Of analysis.json."""

PLACE = {"seed": int, "method": str, "stage": str, "epoch": int}
"""What every record of metrics.jsonl names; everything else in it is a number."""

CONDITIONS = {"clean": "clean", "adversarial": "attacked"}
"""Of images: as analysis.json and as the page calls them."""

PICTURES = 12
"""Images of an evaluation that are shown."""

EXAMPLES = ("clean", "adversarial", "delta", "label", "unrounded_prediction")
EXAMPLES += tuple(f"{c}_{what}" for c in CONDITIONS for what in ("prediction", "confidence"))
"""Fields of examples.npz."""


@dataclass(frozen=True)
class Seed:
    """One seed of a method: stages that finished; test, analysis and examples where they are."""

    number: int
    stages: Sequence[Tree]
    test: Tree | None
    analysis: Tree | None
    examples: Arrays | None = field(repr=False)


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
    def stages(self) -> dict[str, list[Tree]]:
        """Name -> that stage's result of every seed that finished it, in order."""
        found: dict[str, list[Tree]] = {}
        for stage in (stage for seed in self.seeds for stage in seed.stages):
            found.setdefault(stage["name"], []).append(stage)
        return found


@dataclass(frozen=True)
class Run:
    """A run directory as its files describe it.

    Args:
        folder: the run directory.
        config: config.yaml, as plain values.
        summary: summary.json, empty while the run is not finished.
        environment: environment.json, empty where there is none.
        methods: in the run's order.
        metrics: every record of metrics.jsonl, with those of pretraining.
        evaluations: folder below the run's -> the evaluation.json that lies there.
        pictures: likewise, images that were saved: file -> its bytes, see `_pictures`.
        files: every file that was read, in order, below the folder.
        damaged: what could not be read, one line a file.
    """

    folder: Path
    config: Tree
    summary: Tree
    environment: Tree
    methods: Sequence[Method]
    metrics: Sequence[Tree] = field(repr=False)
    evaluations: Mapping[str, Tree] = field(repr=False)
    pictures: Mapping[str, Mapping[str, bytes]] = field(repr=False)
    files: Sequence[Path]
    damaged: Sequence[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def seeds(self) -> Sequence[int]:
        """Their numbers."""
        return self.config.get("seeds") or (0,)

    @property
    def results(self) -> list[Tree]:
        """Of all stages that finished."""
        return [stage for m in self.methods for seed in m.seeds for stage in seed.stages]


def read(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        RunDirectoryError: it is none, or its summary or configuration cannot be read.
    """
    fix = "Name a folder that python -m roli_fast.train wrote."
    try:
        config = read_yaml(folder / CONFIG)
        if "methods" not in config and "finetune" not in config:
            raise ConfigError("it is of something else")
    except ConfigError as error:
        expected = "a run directory with its config.yaml"
        raise RunDirectoryError(describe("run", expected, f"'{folder}'", fix)) from error
    files, path = _Files(folder), folder / "summary.json"
    with naming(path, RunDirectoryError, "run", "a summary that roli_fast.train wrote"):
        summary = _object(path) if path.is_file() else {}
        files.read += [Path(path.name)] if summary else []
        methods = _methods(files, config, summary)
    environment = files.load("environment.json", _object) or {}
    metrics = files.records("metrics.jsonl")
    evaluations = {
        path.parent.as_posix(): tree
        for file in sorted(folder.rglob("evaluation.json"))
        if (tree := files.load(path := file.relative_to(folder), _object))
    }
    with naming(folder, RunDirectoryError, "run", "evaluations of this version"):
        pictures = {name: _pictures(files, Path(name), tree) for name, tree in evaluations.items()}
    read = list(dict.fromkeys((Path(CONFIG), *files.read)))
    damaged = list(dict.fromkeys(files.damaged))
    found = (summary, environment, methods, metrics, evaluations, pictures)
    return Run(folder, config, *found, read, damaged)


def fooled(tree: Tree) -> list[tuple[str, int, int, str]]:
    """(name, label, what the attacked one is taken for, norm) of the images that an evaluation's
    attacks fooled, norm by norm, each once; of a version that did not tell, none."""
    found: dict[str, tuple[str, int, int, str]] = {}
    names, labels = tree.get("names") or (), tree.get("labels") or ()
    for norm, entry in tree["norms"].items():
        answers = at(entry, "robust", "predictions") or at(tree, "union", "predictions") or ()
        flags = [search.get("fooled_flags", "") for search in entry.get("searches") or ()]
        fell = map(set, zip(*flags, strict=True))  # of each image, by every search
        for name, label, answer, own in zip(names, labels, answers, fell, strict=False):
            if "1" in own:
                found.setdefault(name, (name, label, answer, norm))
    return list(found.values())


def _pictures(files: "_Files", folder: Path, tree: Tree) -> dict[str, bytes]:
    """A few images that `--save_adversarial` wrote, "linf/cat/1.png" and "clean/cat/1.png", of all
    classes in turn."""
    found: dict[str, bytes] = {}
    classes = [list(own) for _, own in groupby(sorted(fooled(tree), key=_label), _label)]
    turns = [row for turn in zip_longest(*classes) for row in turn if row]
    for name, _, _, norm in turns[:PICTURES]:
        paths = [f"{kind}/{picture_name(name)}" for kind in (norm, "clean")]
        loaded = [files.load(folder / "adversarial" / path, Path.read_bytes) for path in paths]
        if all(loaded):
            found |= dict(zip(paths, loaded, strict=True))
    return found


def _label(row: tuple[str, int, int, str]) -> int:
    return row[1]


class _Files:
    """Reads files below `folder` and remembers which, and which are damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: list[Path] = []
        self.damaged: list[str] = []

    def load(self, path: str | Path, parse: Callable[[Path], Any]) -> Any:
        """What `parse` makes of a file; None where there is none, or where it is damaged."""
        path = Path(path)
        if not (self.folder / path).is_file():
            return None
        try:
            found = parse(self.folder / path)
        except Exception as error:  # whatever a damaged file makes of it
            self.damaged.append(f"{path.as_posix()}: {told(error)}")
            return None
        self.read.append(path)
        return found

    def records(self, path: str | Path) -> list[Tree]:
        """The records of a metrics.jsonl."""
        found, damaged = self.load(path, read_records) or ([], [])
        if damaged:
            self.damaged.append(f"{path}: lines {listed(list(map(str, damaged)))}")
        return found


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


def parse_analysis(file: Path) -> Tree:
    """What an analysis.json says; raises whatever a damaged one, or another version, makes of it,
    so inside `files.naming`."""
    tree = _object(file)
    if tree.get("schema") != SCHEMA:
        raise ValueError(f"schema {tree.get('schema')!r}, and this version reads {SCHEMA}")
    _ = tree["attack"]["label"], tree["images"], [stage["name"] for stage in tree["stages"]]
    return tree


def _object(file: Path) -> Tree:
    tree = read_json(file)
    if not isinstance(tree, dict):
        raise ValueError("not a JSON object")
    return tree


def _examples(file: Path) -> Arrays:
    """The arrays of examples.npz, each with one entry an image."""
    # opened here: numpy leaves a damaged one open
    with open(file, "rb") as raw, np.load(raw, allow_pickle=False) as archive:
        names = {"name": archive["name"]} if "name" in archive else {}
        return {name: archive[name] for name in EXAMPLES} | names


def _methods(files: _Files, config: Tree, summary: Tree) -> list[Method]:
    cells = (summary.get("sweep") or {"cells": ()})["cells"]
    chosen = {row["method"]: row["folder"] for row in cells if row["chosen"]}
    found, records = [], {}
    for name in (summary or config).get("methods") or ():
        cell = Path(chosen.get(name, "."))
        if cell not in records:
            records[cell] = files.records(cell / "metrics.jsonl")
        entry = summary["methods"][name] if summary else {}
        seeds = []
        for one in entry["per_seed"] if summary else _unfinished(files, name, config):
            base = cell / f"seed-{one['seed']}" / name
            analysis = files.load(base / "analysis.json", parse_analysis)
            examples = files.load(base / "examples.npz", _examples)
            seeds.append(Seed(one["seed"], one["stages"], one.get("test"), analysis, examples))
        own = [r for r in records[cell] if r["method"] == name]
        found.append(Method(name, files.folder / cell, seeds, entry.get("test"), own))
    return found


def _unfinished(files: _Files, method: str, config: Tree) -> list[Tree]:
    """Stages and tests of the seeds so far."""
    runs = []
    for seed in config.get("seeds") or (0,):
        base = files.folder / f"seed-{seed}" / method
        results = sorted(base.glob("stage-*/result.json"))
        stages = [files.load(path.relative_to(files.folder), _object) for path in results]
        test = files.load(base.relative_to(files.folder) / "test.json", _object)
        if any(stages) or test:
            runs.append({"seed": seed, "stages": [s for s in stages if s], "test": test})
    return runs


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
