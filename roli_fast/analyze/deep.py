"""The parts of an analysis that are made when asked for, stage by stage, into analysis.json."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from roli_fast.analysis.deep import Start, one_step_tree
from roli_fast.analyze.cli import Command
from roli_fast.analyze.stage_view import start_of
from roli_fast.files import write_json
from roli_fast.train.method_analysis import FILE, MethodAnalysis

Part = Callable[[Start, Command], Any]


def make_deep(analysis: MethodAnalysis, command: Command) -> Iterator[str]:
    """Make the parts that `command` asks for and are not there; yields each once it is saved."""
    path = analysis.folder / FILE
    for name in command.deep:
        field, make = PARTS[name]
        tree = json.loads(path.read_text(encoding="utf-8"))
        for number, stage in enumerate(tree["stages"], 1):
            if field in stage and not command.again:
                continue
            start = start_of(analysis, number, command.images)
            if start is None:
                continue
            started = time.perf_counter()
            stage[field] = make(start, command)
            stage[field + "_seconds"] = time.perf_counter() - started
            write_json(path, tree)
            yield f"{field} of {stage['name']}"


PARTS: dict[str, tuple[str, Part]] = {
    "ft_ratio": ("one_step", lambda start, _command: one_step_tree(start)),
}
"""Flag -> field of a stage in analysis.json, and what makes it."""
