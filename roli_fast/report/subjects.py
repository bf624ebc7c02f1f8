"""What a page is about: the methods of one run, or of several."""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from roli_fast.report.blocks import Key, Source
from roli_fast.report.read import Method, Run, Tree
from roli_fast.report.svg import LOOKS
from roli_fast.report.text import method_name

CONDITIONS = {"clean": "clean", "adversarial": "attacked"}
"""Of images: as analysis.json and as the page calls them."""


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
    def analyses(self) -> list[Tree]:
        """analysis.json of every seed that has one."""
        return self.method.analyses


@dataclass(frozen=True)
class Page:
    """The runs of a page.

    Args:
        runs: one, or several that are compared.
        folder: where the page will lie; links lead from there.
    """

    runs: Sequence[Run]
    folder: Path

    @property
    def several(self) -> bool:
        """Whether runs are compared."""
        return len(self.runs) > 1

    @property
    def names(self) -> list[str]:
        """What each run is called: the end of its path that no other has."""
        parts = [run.folder.resolve().parts for run in self.runs]
        longest = max(map(len, parts))
        for length in range(1, longest + 1):
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

    def source(self, run: Run, path: str | Path) -> Source:
        """A file below a run's folder, with a link where it is one file."""
        file = run.folder / path
        text = Path(path).as_posix()
        if self.several:
            text = f"{self.names[self.runs.index(run)]}/{text}"
        if not file.is_file():
            return Source(text)
        return Source(text, quote(Path(os.path.relpath(file, self.folder)).as_posix()))

    @property
    def folders(self) -> str:
        """The run directories as words of a command."""
        return " ".join(shlex.quote(str(run.folder)) for run in self.runs)

    def summaries(self) -> list[Source]:
        """summary.json of the runs that have one."""
        return [self.source(run, "summary.json") for run in self.runs if run.summary]

    def of_seeds(self, subjects: Sequence[Subject], name: str) -> list[Source]:
        """The file `name` of every seed of the subjects."""
        found: dict[tuple[str, str | None], Source] = {}
        for subject in subjects:
            base = subject.method.folder.relative_to(subject.run.folder)
            for seed in subject.method.seeds:
                path = base / f"seed-{seed.number}" / subject.method.name / name
                if (subject.run.folder / path).is_file():
                    one = self.source(subject.run, path)
                    found[one.text, one.link] = one
        return list(found.values())


def stage_label(subject: Subject, stage: str) -> str:
    """ "RoLI, probe"; a method of one stage that is called as itself says it once."""
    alone = len(subject.method.stage_names) == 1
    same = method_name(stage) == method_name(subject.method.name)
    return subject.label if alone and same else f"{subject.label}, {stage}"


def steps(subjects: Sequence[Subject]) -> Iterator[tuple[Subject, str, list[Tree]]]:
    """(subject, stage, that stage's entry of every analysed seed)."""
    for subject in subjects:
        names = dict.fromkeys(stage["name"] for a in subject.analyses for stage in a["stages"])
        for name in names:
            own = [
                stage for a in subject.analyses for stage in a["stages"] if stage["name"] == name
            ]
            yield subject, name, own
