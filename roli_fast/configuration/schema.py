"""YAML and command line -> a frozen dataclass, and back.

Components are written by their registered names ({name: pgd, steps: 7}), numbers may be fractions
(8/255), and what a file or flag leaves out is what stood there before.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml

from roli_fast.attacks import Attack
from roli_fast.configuration.files import load_yaml, read_yaml
from roli_fast.configuration.values import (
    NULL,
    Text,
    convert,
    default_of,
    dtype_name,
    element,
    field_types,
    inside,
    may_be_null,
)
from roli_fast.data import DATASETS
from roli_fast.errors import ConfigError, check_utf8, describe
from roli_fast.files import naming
from roli_fast.registry import Registry
from roli_fast.threat import ThreatModel

FOLLOWS_THREAT = ("norm", "norms", "eps", "step_size", "bounds")
"""Fields of an attack that are null in a configuration unless they are given."""

Root = TypeVar("Root")
Tree = dict[str, Any]
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
        given = [(self.full_name(flag), text) for flag, text in pairs(overrides)]
        whole, norm = copy.deepcopy(dict(tree)), dict(given).get("threat.norm")
        threat = whole.get("threat")
        if norm and isinstance(threat, dict) and norm != threat.get("norm", "linf"):
            threat.pop("eps", None)  # the radius of another norm says nothing of this one
        for name, text in sorted(given, key=lambda pair: pair[0].count(".")):
            if text is None:
                raise ConfigError(describe(name, "a value", "nothing", f"Write --{name} VALUE."))
            self._put(whole, name, text)
        return self._make(whole, self.root, "", None)

    def read(self, path: Path) -> Root:
        """The configuration that a program saved.

        Raises:
            ConfigError: what is wrong, with the file's and the field's name.
        """
        fix = "It may be damaged, of something else, or of another version."
        with naming(path, ConfigError, "config", "a saved configuration", fix):
            return self.build(read_yaml(path), [])

    @cached_property
    def fields(self) -> dict[str, Any]:
        """Dotted name -> type of every field that there is, whichever component is chosen."""
        return dict(self._fields(self.root, ""))

    def _fields(self, kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        kinds = [kind]
        if registry := self.components.get(kind):
            kinds = [registry[name] for name in registry]
            yield f"{prefix}name", str
        for own in kinds:
            for name, inner in field_types(own).items():
                yield f"{prefix}{name}", inner
                if is_dataclass(inner) or inner in self.components:
                    yield from self._fields(inner, f"{prefix}{name}.")

    def full_name(self, flag: str) -> str:
        """The field that a flag means: "finetune.optimizer.lr" for "--finetune.lr". A name that no
        field has stays as it is.

        Raises:
            ConfigError: several fields may be meant.
        """
        name = flag.removeprefix("--")
        if name in self.fields:
            return name
        found = [field for field in self.fields if _shortens(name, field)]
        least = min((field.count(".") for field in found), default=0)
        found = [field for field in found if field.count(".") == least]
        if len(found) > 1:
            *most, last = [f"--{field}" for field in found]
            words = f"{', '.join(most)} or {last}"
            raise ConfigError(f"unknown field `{name}`. Did you mean {words}?")
        return found[0] if found else name

    def _put(self, tree: Tree, name: str, text: str) -> None:
        """Write the text of a flag into a tree of fields; what stands above a field is there first,
        so that a component is chosen before its fields are set."""
        *above, last = name.split(".")
        where = ""
        for part in above:
            where = _join(where, part)
            tree[part] = tree = self._mapping(tree.get(part), self.fields.get(where))
        kind = self.fields.get(name)
        if text.startswith("{") and (is_dataclass(kind) or kind in self.components):
            try:
                tree[last] = load_yaml(text)
            except ValueError as error:
                raise ConfigError(describe(name, "fields as YAML has them", text)) from error
        elif text in NULL or kind not in self._written:
            tree[last] = Text(text)
        else:
            new, before = dict(self._written[kind](text)), self._mapping(tree.get(last), kind)
            if kind in self.components and new["name"] != before.get("name"):
                before = self._shared(kind, new["name"], before)
            tree[last] = before | new

    def _mapping(self, value: Any, kind: Any) -> Tree:
        """The fields that a value in a tree stands for; none where it is null or not there."""
        if isinstance(value, str) and value not in NULL and kind in self._written:
            value = self._written[kind](value)
        return dict(value) if isinstance(value, Mapping) else {}

    def _shared(self, kind: Any, name: str, before: Tree) -> Tree:
        """What a component in the place of another keeps: of data what both have, as folder and
        size, and nothing of others, whose fields of one name may mean different things."""
        registry = self.components[kind]
        if registry is not DATASETS or name not in registry:
            return {}
        known = field_types(registry[name])
        return {field: value for field, value in before.items() if field in known}

    def _class(self, tree: Mapping[str, Any], kind: Any, where: str, base: Any) -> Any:
        """The class of the component that a tree names, or else that of `base`."""
        registry = self.components[kind]
        name = tree.get("name")
        if name is None and base is not None:
            return type(base)
        if name not in registry:
            got = repr(str(name)) if name else "no name"
            expected = f"one of: {', '.join(registry.names())}"
            raise ConfigError(describe(_join(where, "name"), expected, got))
        return registry[str(name)]

    def _make(self, tree: Mapping[str, Any], kind: Any, where: str, base: Any) -> Any:
        """A dataclass or component from a tree; what this leaves out is taken from `base`, if that
        is of the same class."""
        given = dict(tree)
        if kind in self.components:
            kind = self._class(tree, kind, where, base)
            given.pop("name", None)
            if issubclass(kind, Attack):
                given = (
                    dict.fromkeys(name for name in FOLLOWS_THREAT if name in field_types(kind))
                    | given
                )
            base = base if type(base) is kind else None
        elif kind is ThreatModel and "norm" in given:
            given = {"eps": None} | given  # the norm's own, not the default of linf
        known, values = field_types(kind), {}
        for name in [name for name in given if name not in known]:
            fields = ", ".join(sorted(known))
            raise ConfigError(f"unknown field `{_join(where, name)}`. Known here: {fields}.")
        for name, inner in known.items():
            path = _join(where, name)
            before = default_of(kind, name) if base is None else getattr(base, name)
            if name in given:
                before = None if before is MISSING else before
                null = name in may_be_null(kind)
                before = self._value(given[name], inner, path, before, null)
            elif before is MISSING:
                expected = "a value, there is no default"
                raise ConfigError(describe(path, expected, "nothing", f"Add --{path} ..."))
            values[name] = before
        with inside(where, known):
            return kind(**values)

    def _value(self, value: Any, kind: Any, where: str, base: Any, null: bool) -> Any:
        """The value of one field."""
        inner = element(kind)
        if value is None or isinstance(value, Text) and value in NULL:
            return convert(value, kind, where, null=null)
        if inner in self._written:
            if isinstance(value, Text):
                value = load_yaml(value) if value.startswith("[") else str(value).split(",")
            items = value if isinstance(value, (list, tuple)) else [value]
            return tuple(self._value(item, inner, where, None, False) for item in items)
        if isinstance(value, str) and not isinstance(value, Text) and kind in self._written:
            value = self._written[kind](value)
        if kind in self.components or is_dataclass(kind):
            if isinstance(value, Mapping):
                return self._make(value, kind, where, base)
            if is_dataclass(value) and kind in self.components:
                return value  # the default of a component's own component
            known = list(field_types(kind)) if is_dataclass(kind) else ["name"]
            fix = f"Write --{where}.{known[0]} VALUE; known here: {', '.join(sorted(known))}."
            raise ConfigError(describe(where, "its fields, one by one", repr(str(value)), fix))
        return convert(value, kind, where, null=null)

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


def _shortens(name: str, field: str) -> bool:
    """Whether the parts of `name` are some of `field`'s, in order, and the last is its last."""
    parts, rest = name.split("."), iter(field.split("."))
    return field.split(".")[-1] == parts[-1] and all(part in rest for part in parts)


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
