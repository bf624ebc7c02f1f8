"""What a page is about: the methods of one run, or of several, and their names and looks."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from roli_fast.report.read import Method, Run, Tree, at, values
from roli_fast.report.text import method_name, radius

LOOKS = 8
"""Colours that there are."""


class Key(NamedTuple):
    """One line of a legend: the number of a colour and of its dashes."""

    label: str
    look: int
    dash: int = 0
    hollow: bool = False


@dataclass(frozen=True)
class Subject:
    """One method of one run, with the name and the look that it has in every part of the page."""

    label: str
    run: Run
    method: Method
    look: int
    dash: int

    @property
    def key(self) -> Key:
        """Its line in a legend."""
        return Key(self.label, self.look, self.dash)

    @property
    def passes(self) -> float | None:
        """Forwards of one image that its stages took, the mean over seeds; None where a stage does
        not tell."""
        found = [values(seed.stages, "passes") for seed in self.method.seeds]
        whole = all(len(f) == len(s.stages) for f, s in zip(found, self.method.seeds, strict=True))
        return mean(map(sum, found)) if found and whole else None

    @property
    def evaluated(self) -> dict[str, list[float]]:
        """Column -> accuracy of every seed, from evaluations of its models in the run's folder."""
        found: dict[str, dict[str, float]] = {}
        for tree in self.run.evaluations.values():
            path = str(at(tree, "model", "file") or at(tree, "model", "source"))
            if place := re.search(rf"seed-(\d+)/{re.escape(self.method.name)}(/|$)", path):
                attacks = " + ".join(str(a.get("name")) for a in tree.get("attacks") or ())
                shares = {
                    f"{attacks}, {radius(norm, entry.get('eps'))}": at(entry, "robust", "accuracy")
                    for norm, entry in tree["norms"].items()
                }
                shares["unseen, mean"] = at(tree, "unseen", "mean_accuracy")
                for name, share in shares.items():
                    found.setdefault(name, {})[place[1]] = share
        seeds = {name: [v for v in own.values() if v is not None] for name, own in found.items()}
        return {name: own for name, own in seeds.items() if own}

    def staged(self, stage: str) -> str:
        """ "RoLI, probe"; a method of one stage that is called as itself says it once."""
        alone = len(self.method.stages) == 1
        same = method_name(stage) == method_name(self.method.name)
        return self.label if alone and same else f"{self.label}, {stage}"


@dataclass(frozen=True)
class Page:
    """The runs of a page: one, or several that are compared."""

    runs: Sequence[Run]

    @property
    def several(self) -> bool:
        """Whether runs are compared."""
        return len(self.runs) > 1

    @property
    def names(self) -> list[str]:
        """What each run is called: the end of its path that no other has."""
        parts = [run.folder.resolve().parts for run in self.runs]
        for length in range(1, max(map(len, parts)) + 1):
            names = ["/".join(p[-length:]) for p in parts]
            if len(set(names)) == len(names):
                return names
        return [f"{run.folder}, {number}" for number, run in enumerate(self.runs, 1)]

    @property
    def subjects(self) -> list[Subject]:
        """Every method of every run."""
        found = []
        for name, run in zip(self.names, self.runs, strict=True):
            for method in run.methods:
                shown = method_name(method.name)
                label = f"{name}: {shown}" if self.several else shown
                look, dash = len(found) % LOOKS, len(found) // LOOKS
                found.append(Subject(label, run, method, look, dash))
        return found

    @property
    def tested(self) -> list[Subject]:
        """The subjects that have a test."""
        return [subject for subject in self.subjects if subject.method.test]

    @property
    def analysed(self) -> list[Subject]:
        """The subjects of which some stage was analysed."""
        return [s for s in self.subjects if any(a["stages"] for a in s.method.analyses)]

    @property
    def analyses(self) -> list[Tree]:
        """Those of every seed of every subject."""
        return [tree for s in self.subjects for tree in s.method.analyses]

    @property
    def looked_at(self) -> str:
        """ "64 training and 64 validation images, attacked by pgd-10"."""
        told = [
            f"{a['images']['train']} training and {a['images']['validation']} validation images, "
            f"attacked by {a['attack']['label']}"
            for a in self.analyses
            if a["stages"]
        ]
        return " or ".join(dict.fromkeys(told))

    @property
    def folders(self) -> str:
        """The run directories as words of a command."""
        return " ".join(shlex.quote(str(run.folder)) for run in self.runs)


def steps(subjects: Sequence[Subject]) -> Iterator[tuple[Subject, str, list[Tree]]]:
    """(subject, stage, that stage's entry of every analysed seed)."""
    for subject in subjects:
        stages = [stage for a in subject.method.analyses for stage in a["stages"]]
        for name in dict.fromkeys(stage["name"] for stage in stages):
            yield subject, name, [stage for stage in stages if stage["name"] == name]
