"""YAML and command line -> Experiment, and back.

jsonargparse does the work. What is added here: components are written by their registered names
({name: pgd, steps: 7}) instead of class paths, numbers may be fractions (8/255), and an unknown
field is reported together with the known ones.
"""

import importlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union

import yaml

from roli_fast.attacks import ATTACKS, PGD, Attack
from roli_fast.data import DATASETS, DataSource
from roli_fast.errors import ConfigError, describe
from roli_fast.peft import METHODS, Method
from roli_fast.registry import Registry
from roli_fast.train.experiment import Experiment
from roli_fast.train.objectives import OBJECTIVES, Objective

COMPONENTS: dict[type, Registry[Any]] = {
    Attack: ATTACKS,
    DataSource: DATASETS,
    Method: METHODS,
    Objective: OBJECTIVES,
}
"""Where a field of each base type finds its classes by name."""

FOLLOWS_THREAT = ("norm", "eps", "step_size", "bounds")
"""Fields of an attack that are null in a run unless they are given."""

RECIPES = Path(__file__).parent.parent / "recipes"
_FRACTION = re.compile(r"^[-+]?\d+(\.\d+)?\s*/\s*\d+(\.\d+)?$")


_NULL = ("null", "None", "none")
_NUMBERS = re.compile(r"^-?[\d./eE+-]+(,-?[\d./eE+-]+)+$")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, plus 8/255 and 1e-3 as numbers."""


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below)


_Loader.add_implicit_resolver("!fraction", _FRACTION, list("-+0123456789"))
_Loader.add_constructor("!fraction", lambda _loader, node: _fraction(node.value))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file as a tree of plain values.

    Raises:
        ConfigError: it is missing, not YAML, or not a mapping; with the line where YAML names one.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise ConfigError(
            describe("config", f"a YAML file or a recipe ({names})", f"'{path}'")
        ) from error
    except (yaml.YAMLError, ZeroDivisionError) as error:
        raise ConfigError(describe("config", "valid YAML", f"'{path}': {error}")) from error
    if not isinstance(tree, dict):
        raise ConfigError(describe("config", "a mapping of fields", f"'{path}'"))
    return tree


def find_config(name: str) -> Path:
    """The file called `name`, or the packaged recipe of that name."""
    recipe = RECIPES / f"{name}.yaml"
    return recipe if not Path(name).exists() and recipe.exists() else Path(name)


def to_class_paths(tree: Any, kind: Any = Experiment, where: str = "") -> Any:
    """Check field names against `kind` and write components as jsonargparse wants them."""
    kind = _without_none(kind)
    if isinstance(tree, str) and kind in COMPONENTS:
        tree = {"name": tree}  # data: digits
    if not isinstance(tree, Mapping) or not isinstance(kind, type):
        return tree
    if kind in COMPONENTS:
        return _component(tree, COMPONENTS[kind], where)
    if not is_dataclass(kind):
        return dict(tree)
    known = field_types(kind)
    for name in tree:
        if name not in known:
            raise ConfigError(
                f"unknown field `{_join(where, name)}`. Known here: {', '.join(sorted(known))}."
            )
    return {
        name: to_class_paths(value, known[name], _join(where, name)) for name, value in tree.items()
    }


def _component(tree: Mapping[str, Any], registry: Registry[Any], where: str) -> dict[str, Any]:
    known = ", ".join(registry.names())
    if "name" not in tree:
        raise ConfigError(describe(f"{where}.name", f"one of: {known}", "no name"))
    if tree["name"] not in registry:
        raise ConfigError(describe(f"{where}.name", f"one of: {known}", repr(tree["name"])))
    chosen = registry[tree["name"]]
    arguments = {name: value for name, value in tree.items() if name != "name"}
    if registry is ATTACKS:  # what is left out follows the run's threat model
        left_out = set(FOLLOWS_THREAT) & set(field_types(chosen)) - set(arguments)
        arguments |= dict.fromkeys(left_out)
    if registry is METHODS or registry is ATTACKS and chosen is not PGD:
        # else the parser keeps what the component before has under the same name
        arguments = _defaults(chosen) | arguments
    return {"class_path": class_path(chosen), "init_args": to_class_paths(arguments, chosen, where)}


def _defaults(kind: type) -> dict[str, Any]:
    """Field -> default, for the fields that have a plain one."""
    return {f.name: to_tree(f.default) for f in fields(kind) if f.init and f.default is not MISSING}


def to_tree(value: Any) -> Any:
    """An experiment, or any part of one, as plain values with components by name."""
    if isinstance(value, (list, tuple)):
        return [to_tree(item) for item in value]
    if isinstance(value, Mapping):
        return {name: to_tree(item) for name, item in value.items()}
    if not is_dataclass(value):
        return value
    registry = next((r for base, r in COMPONENTS.items() if isinstance(value, base)), None)
    name = {"name": registry.name_of(type(value))} if registry else {}
    return name | {f: to_tree(getattr(value, f)) for f in field_types(type(value))}


def to_yaml(experiment: Experiment) -> str:
    """The whole configuration as it is saved."""
    return yaml.safe_dump(to_tree(experiment), sort_keys=False, default_flow_style=None)


def import_class(path: str) -> type:
    """The class at an import path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def class_path(kind: type) -> str:
    """The import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


@cache
def field_types(kind: type) -> dict[str, Any]:
    """The fields of a dataclass and their types, None left out of optional ones."""
    hints = typing.get_type_hints(kind)
    return {f.name: _without_none(hints[f.name]) for f in fields(kind) if f.init}


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (Union, types.UnionType):
        rest = [part for part in typing.get_args(kind) if part is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)


def translate(arguments: Sequence[str]) -> list[str]:
    """Command-line overrides as jsonargparse wants them.

    `--data digits` becomes a class path and goes first, `8/255` a number, `0,1,2` a list.
    """
    chosen: list[str] = []
    rest: list[str] = []
    for flag, text in pairs(arguments):
        first = field_at(flag[2:]) in COMPONENTS and text not in (None, *_NULL)
        out = chosen if first else rest
        out.append(flag if text is None else f"{flag}={_value(flag[2:], text)}")
    return chosen + rest


def pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(flag, value) of `--flag value` and `--flag=value`."""
    waiting: str | None = None
    for argument in arguments:
        if not argument.startswith("--"):
            if waiting is None:
                raise ConfigError(f"unexpected argument {argument!r}: values follow a --flag.")
            yield waiting, argument
            waiting = None
            continue
        if waiting is not None:
            yield waiting, None
        waiting, equals, value = argument.partition("=")
        if equals:
            yield waiting, value
            waiting = None
    if waiting is not None:
        yield waiting, None


def _value(flag: str, text: str) -> str:
    kind = field_at(flag)
    if text in _NULL:
        return "null"
    if _FRACTION.match(text):
        try:
            return repr(_fraction(text))
        except ZeroDivisionError:
            raise ConfigError(describe(flag, "a number", text)) from None
    if kind in COMPONENTS:
        component = _component({"name": text}, COMPONENTS[kind], flag)
        own = kind is Method or kind is Attack and component["class_path"] != class_path(PGD)
        return json.dumps(component) if own else component["class_path"]
    if typing.get_origin(kind) is tuple and not text.startswith("[") or _NUMBERS.match(text):
        return json.dumps([yaml.load(part, _Loader) for part in text.split(",")])  # noqa: S506
    return text


def _own_field(registry: Registry[Any], name: str) -> Any:
    """The type of a component's own field, where all that have such a field agree."""
    found = [
        field_types(registry[key])[name] for key in registry if name in field_types(registry[key])
    ]
    return found[0] if found and all(kind == found[0] for kind in found) else None


def field_at(path: str) -> Any:
    """The type of the field that a dotted flag names; None where it cannot be told.

    Raises:
        ConfigError: a part of the path is unknown, where that can be told.
    """
    kind: Any = Experiment
    walked = ""
    for part in path.split("."):
        if kind in COMPONENTS:
            kind = _own_field(COMPONENTS[kind], part)
            continue
        known = field_types(kind) if is_dataclass(kind) else {}
        if part not in known:
            if not known:
                return None
            raise ConfigError(
                f"unknown field `{_join(walked, part)}`. Known here: {', '.join(sorted(known))}."
            )
        kind, walked = known[part], _join(walked, part)
    return kind
