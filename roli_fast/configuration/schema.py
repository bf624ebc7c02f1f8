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

from roli_fast.attacks import ATTACKS, PGD
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
        given = [*_radius_anew(tree, dict(given)), *given]
        # a component is chosen before its fields are set
        inside = {flag[:end] for flag, _ in given for end, dot in enumerate(flag) if dot == "."}
        chosen = {flag for flag in inside if self.fields.get(flag) in self.components}
        first = [pair for pair in given if pair[0] in chosen and pair[1] not in NULL]
        whole = copy.deepcopy(dict(tree))
        for name, text in [*first, *(pair for pair in given if pair not in first)]:
            if text is None:
                raise ConfigError(describe(name, "a value", "nothing", f"Write --{name} VALUE."))
            self._put(whole, self.root, None, name, text, "")
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

    def _put(  # noqa: PLR0913 - a place in a tree, and what is known of it
        self, tree: Tree, kind: Any, base: Any, path: str, text: str, where: str
    ) -> None:
        """Write the text of a flag into a tree of fields.

        Args:
            tree: the fields of a `kind`; what it leaves out is as in `base`, or as by default.
            kind: a dataclass, a component's base type or a mapping.
            base: a value of it, or None.
            path: from here, dotted.
            text: of the flag.
            where: the path to here.
        """
        name, _, rest = path.partition(".")
        where = _join(where, name)
        own = self.components[kind][tree["name"]] if kind in self.components else kind
        inner = field_types(own).get(name) if is_dataclass(own) else None
        before = getattr(base, name, None) if base is not None else _default(own, name)
        node = tree.get(name)
        if isinstance(node, str) and inner in self._written:
            node = self._written[inner](node)
        if rest:
            if not isinstance(node, Mapping):
                node = self._names(inner, before)
            tree[name] = dict(node)
            self._put(tree[name], inner, before, rest, text, where)
        elif text.startswith("{") and (is_dataclass(inner) or inner in self.components):
            try:
                tree[name] = load_yaml(text)
            except ValueError as error:
                raise ConfigError(describe(where, "fields as YAML has them", text)) from error
        elif text in NULL or inner not in self._written:
            tree[name] = Text(text)
        elif inner in self.components:
            tree[name] = self._chosen(inner, text, node, where)
        else:
            before = dict(node) if isinstance(node, Mapping) else {}
            tree[name] = before | dict(self._written[inner](text))

    def _names(self, kind: Any, before: Any) -> Mapping[str, Any]:
        """What a tree says of a field before anything in it was given."""
        if kind in self.components:
            return {} if before is None else {"name": self.components[kind].name_of(type(before))}
        return before if isinstance(before, Mapping) else {}

    def _chosen(self, kind: Any, text: str, node: Any, where: str) -> Tree:
        """A component by its short name in the place of `node`; what both have keeps its value,
        where the new one does not start anew."""
        new, registry = dict(self._written[kind](text)), self.components[kind]
        chosen, old = self._class(new, kind, where), node if isinstance(node, Mapping) else {}
        another = registry is ATTACKS and old.get("name", new["name"]) != new["name"]
        if another or _starts_anew(registry, chosen):  # PGD in the place of another
            follows = dict.fromkeys(_following(registry, chosen))
            plain = {n: default_of(chosen, n) for n in field_types(chosen)}
            return {n: v for n, v in plain.items() if v is not MISSING} | follows | new
        return {n: v for n, v in old.items() if n in field_types(chosen)} | new

    def _class(self, tree: Mapping[str, Any], kind: Any, where: str) -> Any:
        """The class of the component that a tree names."""
        registry = self.components[kind]
        name = tree.get("name")
        if name not in registry:
            got = repr(str(name)) if name else "no name"
            expected = f"one of: {', '.join(registry.names())}"
            raise ConfigError(describe(_join(where, "name"), expected, got))
        return registry[str(name)]

    def _make(self, tree: Mapping[str, Any], kind: Any, where: str, base: Any) -> Any:
        """A dataclass or component from a tree; what this leaves out is taken from `base`."""
        given = dict(tree)
        if kind in self.components:
            registry, kind = self.components[kind], self._class(tree, kind, where)
            del given["name"]
            given = dict.fromkeys(_following(registry, kind)) | given
            if type(base) is not kind or _starts_anew(registry, kind):
                base = None
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


def _starts_anew(registry: Registry[Any], chosen: type) -> bool:
    """Whether a component that is named takes its own defaults, whatever stood in its place."""
    if registry is ATTACKS:
        return chosen is not PGD
    return registry.kind in ("tuning", "objective", "schedule")


def _following(registry: Registry[Any], chosen: type) -> set[str]:
    """The fields of an attack that are null unless they are given."""
    known = field_types(chosen) if registry is ATTACKS else ()
    return {name for name in FOLLOWS_THREAT if name in known}


def _default(kind: Any, name: str) -> Any:
    known = is_dataclass(kind) and name in field_types(kind)  # type: ignore[arg-type]
    found = default_of(kind, name) if known else None  # type: ignore[arg-type]
    return None if found is MISSING else found


def _radius_anew(
    tree: Mapping[str, Any], given: Mapping[str, str | None]
) -> list[tuple[str, str | None]]:
    """What a threat in another norm than the tree's adds: the tree's radius is left behind, for
    linf's says nothing of l2."""
    norm, threat = given.get("threat.norm"), tree.get("threat")
    old = threat.get("norm", "linf") if isinstance(threat, Mapping) else "linf"
    return [] if norm in (None, old) else [("threat.eps", "null")]


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
