"""Which runs a sweep consists of: every combination of the values given, method by method."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from roli_fast.errors import ConfigError, RoliFastError, describe
from roli_fast.train.config import SCHEMA
from roli_fast.train.experiment import PLACE_FIELDS, STAGES, Experiment

ALIKE = ("methods", "seeds", "threat", "validation", "test")
"""Fields that cells must share: else they would be chosen and compared by different measures."""


@dataclass(frozen=True)
class Axis:
    """One swept field and its values, as they are written on the command line."""

    field: str
    values: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> "Axis":
        """Read FIELD=A,B or FIELD=[A,B].

        Raises:
            ConfigError: no values, an unknown field, or a value given twice.
        """
        field, equals, values = text.partition("=")
        field = field.strip().removeprefix("--")
        inner = values.strip()
        if _split(inner) == [inner] and inner.startswith("[") and inner.endswith("]"):
            inner = inner[1:-1]
        found = tuple(part.strip() for part in _split(inner))
        if not equals or not field or not all(found):
            fix = "Write --sweep finetune.optimizer.lr=1e-3,1e-4"
            raise ConfigError(describe("--sweep", "FIELD=VALUE,VALUE,...", repr(text), fix))
        SCHEMA.field_at(field)
        if field in PLACE_FIELDS:
            got, fix = repr(text), "All its values would train the same."
            raise ConfigError(describe("--sweep", "a field that changes what is trained", got, fix))
        if len(set(found)) < len(found):
            raise ConfigError(describe("--sweep", f"different values of {field}", repr(text)))
        return Axis(field, found)


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: one method with one choice of the values that concern it."""

    method: str
    choice: tuple[tuple[str, str], ...]
    experiment: Experiment

    @property
    def label(self) -> str:
        """ "finetune.optimizer.lr=1e-3"; "as configured" where no swept field concerns it."""
        return " ".join(f"{field}={value}" for field, value in self.choice) or "as configured"

    @property
    def folder(self) -> str:
        """Its run directory, below that of the sweep."""
        name = re.sub(r"[^\w.=+-]+", "_", "_".join(f"{f}={v}" for f, v in self.choice))
        return f"{self.method}/{name or 'as-configured'}"


def cells(base: Experiment, axes: Sequence[Axis]) -> list[Cell]:
    """The runs of a sweep, grouped by method. What does not concern a method is not run twice.

    Raises:
        ConfigError: a value that a field refuses, two equal cells, or cells that could not be
            compared.
    """
    fields = [axis.field for axis in axes]
    if len(set(fields)) < len(fields):
        fix = "Give all values of a field at once."
        raise ConfigError(describe("--sweep", "each field once", ", ".join(fields), fix))
    tree = SCHEMA.to_tree(base)
    found = [
        (tuple(zip(fields, values, strict=True)), _build(tree, fields, values))
        for values in product(*(axis.values for axis in axes))
    ]
    _check(base, found)
    out = [cell for method in base.methods for cell in _of_method(method, found)]
    names = [cell.folder for cell in out]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(describe("--sweep", "values that differ as folder names", twice))
    return out


Found = Sequence[tuple[tuple[tuple[str, str], ...], Experiment]]


def _build(tree: Mapping[str, Any], fields: Sequence[str], values: Sequence[str]) -> Experiment:
    flags = [f"--{field}={value}" for field, value in zip(fields, values, strict=True)]
    try:
        return SCHEMA.build(dict(tree), flags)
    except RoliFastError as error:
        raise ConfigError(f"`--sweep`, {' '.join(flags)}: {error}") from error


def _check(base: Experiment, found: Found) -> None:
    for name in ALIKE:
        if any(getattr(experiment, name) != getattr(base, name) for _, experiment in found):
            fix = "Cells are chosen and compared by one measure: start a sweep for each value."
            raise ConfigError(describe("--sweep", f"fields other than {name}", name, fix))
    if any(replace(e.data, augment=base.data.augment) != base.data for _, e in found):
        fix = "Cells are chosen on the same validation images: start a sweep for each value."
        raise ConfigError(describe("--sweep", "of data nothing but data.augment", "data", fix))
    for (first, a), (second, b) in combinations(found, 2):
        if a == b:
            raise ConfigError(
                describe("--sweep", "different cells", f"{_text(first)} and {_text(second)} alike")
            )
    for method in base.methods:
        clean = {experiment.stages(method)[-1][1].attack is None for _, experiment in found}
        if len(clean) > 1:
            fix = "Clean and robust validation accuracy cannot be compared."
            raise ConfigError(
                describe("--sweep", f"cells of {method} that all attack, or none", "both", fix)
            )


def _text(choice: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{field}={value}" for field, value in choice)


def _of_method(method: str, found: Found) -> list[Cell]:
    """One cell for each experiment that differs in what `method` reads."""
    groups: list[tuple[Experiment, list[tuple[tuple[str, str], ...]], Experiment]] = []
    for choice, experiment in found:
        own = _as_read(method, experiment)
        for key, choices, _ in groups:
            if key == own:
                choices.append(choice)
                break
        else:
            groups.append((own, [choice], replace(experiment, methods=(method,))))
    return [Cell(method, _common(choices), experiment) for _, choices, experiment in groups]


def _as_read(method: str, experiment: Experiment) -> Experiment:
    """The experiment with the stages that `method` does not read left at their defaults."""
    read = experiment.read_stages(method)
    if experiment.source is not None:
        read |= {"pretrain"}
    plain = Experiment(data=experiment.data)
    unread = {name: getattr(plain, name) for name in STAGES if name not in read}
    return replace(experiment, methods=(method,), **unread)


def _common(choices: Sequence[tuple[tuple[str, str], ...]]) -> tuple[tuple[str, str], ...]:
    """The choices that all combinations of one group share."""
    return tuple(pair for pair in choices[0] if all(pair in choice for choice in choices))
