"""The text of `--help`: every field with its default and what its docstring says."""

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import torch

from roli_fast.attacks import Attack
from roli_fast.configuration.schema import FOLLOWS_THREAT, Schema
from roli_fast.configuration.values import descriptions, dtype_name, element, field_types


class Usage:
    """Describes the fields of a schema.

    Args:
        schema: whose components are named.
        apart: dataclasses whose fields are described elsewhere, once.
    """

    def __init__(self, schema: Schema[Any], apart: tuple[type, ...] = ()) -> None:
        self._components = schema.components
        self._apart = apart

    def components(self) -> Iterator[str]:
        """The fields of every component."""
        for registry in self._components.values():
            for name in registry:
                yield from ("", f"Fields of the {registry.kind} {name}:")
                yield from list(self.lines(registry[name], "  .")) or ["  (none)"]

    def lines(self, kind: type, prefix: str) -> Iterator[str]:
        """The fields of a dataclass, those of its parts included."""
        texts = descriptions(kind)
        types = field_types(kind)
        inside = (*self._components, *self._apart)
        for field in fields(kind):
            if field.name not in types:
                continue
            inner: Any = types[field.name]
            if is_dataclass(inner) and inner not in inside:
                if field.default is None:  # off unless one of its fields is given
                    yield line(f"{prefix}{field.name}", "null", texts.get(field.name, ""))
                yield from self.lines(inner, f"{prefix}{field.name}.")  # type: ignore[arg-type]
            else:
                follows = issubclass(kind, Attack) and field.name in FOLLOWS_THREAT
                default = "null in a run" if follows else self._default(field)
                text = texts.get(field.name, "") + self._choices(inner)
                yield line(f"{prefix}{field.name}", default, text)

    def _choices(self, kind: Any) -> str:
        kind = element(kind) or kind
        if kind not in self._components:
            return ""
        return f" One of: {', '.join(self._components[kind].names())}."

    def _default(self, field: Field[Any]) -> str:
        if field.default is not MISSING:
            value = field.default
        elif field.default_factory is not MISSING:
            value = field.default_factory()
        else:
            return "required"
        return self._shown(value)

    def _shown(self, value: Any) -> str:
        if value is None:
            return "null"
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
