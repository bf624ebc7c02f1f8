"""The text of `--help`: every field with its default and what its docstring says."""

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import torch

from roli_fast.attacks import Attack
from roli_fast.configuration.schema import FOLLOWS_THREAT, Schema
from roli_fast.configuration.values import (
    default_of,
    descriptions,
    dtype_name,
    element,
    field_types,
)
from roli_fast.errors import ConfigError, describe


class Usage:
    """Describes the fields of a schema.

    Args:
        schema: whose fields and components are named.
        apart: dataclasses whose fields are described once, not in each field of that type.
    """

    def __init__(self, schema: Schema[Any], apart: tuple[type, ...] = ()) -> None:
        self._schema, self._components = schema, schema.components
        self._apart = apart

    def overview(self) -> str:
        """The fields of a configuration by name, and how to ask for more."""
        names = f"Fields: {', '.join(field_types(self._schema.root))}."
        return (
            textwrap.fill(names, 100, subsequent_indent="        ")
            + "\n--help FIELD tells of one (--help finetune.optimizer), --help NAME of a component "
            "(--help pgd),\n--help all of everything."
        )

    def about(self, asked: str) -> str:
        """What there is to say of a field, or of a component.

        Raises:
            ConfigError: there is neither.
        """
        for registry in self._components.values():
            if asked in registry:
                return "\n".join(self._component(registry, asked))
        name = self._schema.full_name(asked)
        if name not in self._schema.fields:
            fix = "--help lists the fields, --help all describes everything."
            raise ConfigError(describe("--help", "a field or a component", repr(asked), fix))
        above, _, last = name.rpartition(".")
        owner = self._schema.fields[above] if above else self._schema.root
        texts = [descriptions(kind).get(last, "") for kind in self._classes(owner)]
        kind = self._schema.fields[name]
        lines = [line(f"--{name}", "", next(filter(None, texts), "") + self._choices(kind))]
        if registry := self._components.get(element(kind) or kind):
            lines += [text for known in registry for text in self._component(registry, known)]
        elif is_dataclass(kind):
            base = default_of(owner, last) if owner is self._schema.root else None
            lines += self.lines(kind, f"--{name}.", None if base is MISSING else base)
        return "\n".join(lines)

    def _classes(self, kind: Any) -> list[type]:
        registry = self._components.get(kind)
        return [registry[name] for name in registry] if registry else [kind]

    def components(self) -> Iterator[str]:
        """The fields of every component."""
        for registry in self._components.values():
            for name in registry:
                yield from self._component(registry, name)

    def _component(self, registry: Any, name: str) -> list[str]:
        own = list(self.lines(registry[name], "  ."))
        return ["", f"Fields of the {registry.kind} {name}:", *(own or ["  (none)"])]

    def lines(self, kind: Any, prefix: str, base: Any = None) -> Iterator[str]:
        """The fields of a dataclass, those of its parts included; in brackets the defaults, or
        what `base` has."""
        texts, types = descriptions(kind), field_types(kind)
        inside = (*self._components, *self._apart)
        for field in fields(kind):
            if field.name not in types:
                continue
            inner: Any = types[field.name]
            if is_dataclass(inner) and inner not in inside:
                if field.default is None:  # off unless one of its fields is given
                    yield line(f"{prefix}{field.name}", "null", texts.get(field.name, ""))
                own = getattr(base, field.name, None)
                yield from self.lines(inner, f"{prefix}{field.name}.", own)
            else:
                follows = issubclass(kind, Attack) and field.name in FOLLOWS_THREAT
                value = default_of(kind, field.name)
                value = value if base is None else getattr(base, field.name)
                default = "null in a run" if follows else self._shown(value)
                text = texts.get(field.name, "") + self._choices(inner)
                yield line(f"{prefix}{field.name}", default, text)

    def _choices(self, kind: Any) -> str:
        kind = element(kind) or kind
        if kind not in self._components:
            return ""
        return f" One of: {', '.join(self._components[kind].names())}."

    def _shown(self, value: Any) -> str:
        if value is None or value is MISSING:
            return "required" if value is MISSING else "null"
        if isinstance(value, tuple):
            return ",".join(map(self._shown, value))
        if isinstance(value, self._apart):
            return ""
        for base, registry in self._components.items():
            if isinstance(value, base):
                return registry.name_of(type(value))
        if isinstance(value, torch.dtype):
            return dtype_name(value)
        return f"{value:g}" if isinstance(value, float) else str(value)


def line(flag: str, default: str, text: str) -> str:
    """A flag, what it is for, and its default, wrapped."""
    body = f"{text} [{default}]" if default else text
    indent = " " * 28
    wrapped = textwrap.fill(body, 100, initial_indent=indent, subsequent_indent=indent)
    head = f"  {flag}"
    return f"{head:<27} {wrapped.lstrip()}" if len(head) < 28 else f"{head}\n{wrapped}"
