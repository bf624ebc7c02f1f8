"""YAML and command line -> a frozen dataclass, and back.

jsonargparse does the work. What is added here: components are written by their registered names
({name: pgd, steps: 7}) instead of class paths, numbers may be fractions (8/255), and an unknown
field is reported together with the known ones.
"""

import argparse
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml
from jsonargparse import ArgumentParser

from roli_fast.attacks import ATTACKS, PGD
from roli_fast.configuration.files import fraction, is_fraction, load_yaml, read_yaml
from roli_fast.configuration.messages import plain_message
from roli_fast.configuration.types import (
    class_path,
    dtype_name,
    element,
    field_types,
    without_none,
)
from roli_fast.errors import ConfigError, RoliFastError, check_utf8, describe
from roli_fast.files import naming
from roli_fast.registry import Registry
from roli_fast.threat import ThreatModel

FOLLOWS_THREAT = ("norm", "norms", "eps", "step_size", "bounds")
"""Fields of an attack that are null in a configuration unless they are given."""

_NULL = ("null", "None", "none")
_NUMBERS = re.compile(r"^-?[\d./eE+-]+(,-?[\d./eE+-]+)+$")

Root = TypeVar("Root")
Written = Callable[[str], Mapping[str, Any]]


class Schema(Generic[Root]):
    """How configurations of one program are read and written.

    Args:
        root: the dataclass that a configuration makes.
        components: where a field of each base type finds its classes by name.
        written: type -> what a text stands for where that type is expected, as a tree of fields;
            else a component's text is its name, and other dataclasses have no short form.
    """

    def __init__(
        self,
        root: type[Root],
        components: Mapping[type, Registry[Any]],
        written: Mapping[type, Written] | None = None,
    ) -> None:
        self.root = root
        self.components = components
        named: dict[type, Written] = {kind: lambda text: {"name": text} for kind in components}
        self._written: dict[type, Written] = named | dict(written or {})

    def build(self, tree: Mapping[str, Any], overrides: Sequence[str]) -> Root:
        """The configuration of a tree and dotted overrides.

        Raises:
            ConfigError: what is wrong, with the field's name.
        """
        parser = self.parser()
        overrides = [*_radius_anew(tree, overrides), *overrides]
        try:
            plain = json.dumps(self.to_class_paths(tree))
            config = parser.parse_args(["--config", plain, *self.translate(overrides, tree)])
            values = parser.instantiate(config)
            known: Any = self.root
            return known(**{f.name: values[f.name] for f in fields(known)})
        except RoliFastError:
            raise
        except (argparse.ArgumentError, ValueError, TypeError) as error:
            raise ConfigError(plain_message(error, self.field_at)) from error

    def read(self, path: Path) -> Root:
        """The configuration that a program saved.

        Raises:
            ConfigError: what is wrong, with the file's and the field's name.
        """
        fix = "It may be damaged, of something else, or of another version."
        with naming(path, ConfigError, "config", "a saved configuration", fix):
            return self.build(read_yaml(path), [])

    def parser(self) -> ArgumentParser:
        """The parser of all fields; errors are raised, not printed."""
        parser = ArgumentParser(exit_on_error=False, usage=argparse.SUPPRESS, add_help=False)
        parser.add_argument("--config", action="config", help=argparse.SUPPRESS)
        parser.add_class_arguments(self.root)
        return parser

    def to_class_paths(self, tree: Any, kind: Any = None, where: str = "") -> Any:
        """Check field names against `kind` and write components as jsonargparse wants them."""
        kind = without_none(self.root if kind is None else kind)
        inner = element(kind)
        if inner in self._written and tree is not None:
            items = tree if isinstance(tree, (list, tuple)) else [tree]
            return [self._item(item, inner, where) for item in items]
        if isinstance(tree, str) and kind in self._written:
            tree = self._written[kind](tree)  # data: digits
        if not isinstance(tree, Mapping) or not isinstance(kind, type):
            return tree
        if kind in self.components:
            return self._component(tree, self.components[kind], where)
        if not is_dataclass(kind):
            return dict(tree)
        known = field_types(kind)
        if kind is ThreatModel and "norm" in tree:
            tree = {"eps": None} | dict(tree)  # the norm's own, not the default of linf
        for name in tree:
            if name not in known:
                raise ConfigError(
                    f"unknown field `{_join(where, name)}`. Known here: {', '.join(sorted(known))}."
                )
        return {
            name: self.to_class_paths(value, known[name], _join(where, name))
            for name, value in tree.items()
        }

    def _item(self, tree: Any, kind: Any, where: str) -> Any:
        """One of several; whatever stood in its place before leaves nothing behind."""
        tree = self._written[kind](tree) if isinstance(tree, str) else tree
        if kind not in self.components or not isinstance(tree, Mapping):
            return self.to_class_paths(tree, kind, where)
        return self._component(tree, self.components[kind], where, whole=True)

    def _component(
        self, tree: Mapping[str, Any], registry: Registry[Any], where: str, *, whole: bool = False
    ) -> dict[str, Any]:
        known = ", ".join(registry.names())
        if "name" not in tree:
            raise ConfigError(describe(f"{where}.name", f"one of: {known}", "no name"))
        if tree["name"] not in registry:
            raise ConfigError(describe(f"{where}.name", f"one of: {known}", repr(tree["name"])))
        chosen = registry[tree["name"]]
        arguments = {name: value for name, value in tree.items() if name != "name"}
        if registry is ATTACKS:  # what is left out follows the threat model
            left_out = set(FOLLOWS_THREAT) & set(field_types(chosen)) - set(arguments)
            arguments |= dict.fromkeys(left_out)
        if whole or _starts_anew(registry, chosen):
            arguments = self._defaults(chosen) | arguments
        init = self.to_class_paths(arguments, chosen, where)
        return {"class_path": class_path(chosen), "init_args": init}

    def _defaults(self, kind: type) -> dict[str, Any]:
        """Field -> default, for the fields that have a plain one."""
        plain = [f for f in fields(kind) if f.init and f.default is not MISSING]
        return {f.name: self.to_tree(f.default) for f in plain}

    def to_tree(self, value: Any) -> Any:
        """A configuration, or any part of one, as plain values with components by name."""
        if isinstance(value, (list, tuple)):
            return [self.to_tree(item) for item in value]
        if isinstance(value, Mapping):
            return {name: self.to_tree(item) for name, item in value.items()}
        if not is_dataclass(value):
            return dtype_name(value) if isinstance(value, torch.dtype) else value
        found = (r for base, r in self.components.items() if isinstance(value, base))
        registry = next(found, None)
        name = {"name": registry.name_of(type(value))} if registry else {}
        return name | {f: self.to_tree(getattr(value, f)) for f in field_types(type(value))}

    def to_yaml(self, value: Root) -> str:
        """The whole configuration as it is saved."""
        return yaml.safe_dump(self.to_tree(value), sort_keys=False, default_flow_style=None)

    def translate(self, arguments: Sequence[str], tree: Mapping[str, Any]) -> list[str]:
        """Command-line overrides of `tree` as jsonargparse wants them.

        `--data digits` becomes a class path and goes first, `8/255` a number, `0,1,2` a list.
        """
        chosen: list[str] = []
        rest: list[str] = []
        for flag, text in pairs(arguments):
            kind = self.field_at(flag[2:])
            if text is None:
                rest.append(flag)
            elif kind in self._written and kind not in self.components:
                short = self._written[kind](text)
                rest += [f"{flag}.{name}={value}" for name, value in short.items()]
            else:
                first = kind in self.components and text not in _NULL
                value = self._value(flag[2:], text, kind, tree)
                (chosen if first else rest).append(f"{flag}={value}")
        return chosen + rest

    def _value(self, flag: str, text: str, kind: Any, tree: Mapping[str, Any]) -> str:
        if text in _NULL:
            return "null"
        if element(kind) in self._written and not text.startswith("["):
            return json.dumps(self.to_class_paths(text.split(","), kind, flag))
        try:
            if typing.get_origin(kind) is tuple and not text.startswith("["):
                names = element(kind) is str  # a class may be called 7
                parts = text.split(",")
                return json.dumps([part if names and part else load_yaml(part) for part in parts])
            if is_fraction(text):
                return repr(fraction(text))
            if text.startswith("[") and kind is None:  # a field of some components: [8/255]
                return json.dumps(load_yaml(text))
        except (ValueError, ZeroDivisionError):
            raise ConfigError(describe(flag, "a number, or several in [...]", text)) from None
        if kind in self.components:
            registry, written = self.components[kind], self._written[kind](text)
            component = self._component(written, registry, flag)
            own = _starts_anew(registry, registry[written["name"]])
            if registry is ATTACKS and _name_at(tree, flag) not in (None, written["name"]):
                component = self._item(written, kind, flag)  # PGD in the place of another
                own = True
            return json.dumps(component) if own else component["class_path"]
        if _NUMBERS.match(text):
            return json.dumps([load_yaml(part) for part in text.split(",")])
        return text

    def _own_field(self, registry: Registry[Any], name: str) -> Any:
        """The type of a component's own field, where all that have such a field agree."""
        types = [field_types(registry[key]) for key in registry]
        found = [known[name] for known in types if name in known]
        return found[0] if found and all(kind == found[0] for kind in found) else None

    def field_at(self, path: str) -> Any:
        """The type of the field that a dotted flag names; None where it cannot be told.

        Raises:
            ConfigError: a part of the path is unknown, where that can be told.
        """
        kind: Any = self.root
        walked = ""
        for part in path.split("."):
            if kind in self.components:
                kind = self._own_field(self.components[kind], part)
                continue
            known = field_types(kind) if is_dataclass(kind) else {}  # type: ignore[arg-type]
            if part not in known:
                if not known:
                    return None
                raise ConfigError(
                    f"unknown field `{_join(walked, part)}`. "
                    f"Known here: {', '.join(sorted(known))}."
                )
            kind, walked = known[part], _join(walked, part)
        return kind


def _starts_anew(registry: Registry[Any], chosen: type) -> bool:
    """Whether a component that is named takes its own defaults: else the parser keeps what the
    component before has under the same name."""
    if registry is ATTACKS:
        return chosen is not PGD
    return registry.kind in ("tuning", "objective", "schedule")


def _name_at(tree: Any, path: str) -> str | None:
    """The name of the component that a tree has at a dotted path, if it has one there."""
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree.get("name") if isinstance(tree, Mapping) else tree


def _radius_anew(tree: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The flag by which a threat in another norm than the tree's leaves the tree's radius behind:
    linf's says nothing of l2."""
    norm, threat = dict(pairs(overrides)).get("--threat.norm"), tree.get("threat")
    old = threat.get("norm", "linf") if isinstance(threat, Mapping) else "linf"
    return [] if norm in (None, old) else ["--threat.eps=null"]


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise `ArgumentError`, with the flag, for what is not UTF-8: no resume could read it back."""
    flag = ""
    for argument in arguments:
        flag = argument.partition("=")[0] if argument.startswith("--") else flag
        check_utf8(flag, argument)


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
