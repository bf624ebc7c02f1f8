"""Some of the samples that a search works on."""

from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def take(item: T, rows: Tensor | slice) -> T:
    """The dataclass `item` with these rows of each of its tensors, also of those in its parts.

    Indices copy, a slice gives views.
    """
    changed: dict[str, Any] = {}
    for field in fields(item):  # pyright: ignore[reportArgumentType]
        value = getattr(item, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = (
                value[rows] if isinstance(rows, slice) else value.index_select(0, rows)
            )
        elif is_dataclass(value):
            changed[field.name] = take(value, rows)
    return replace(item, **changed)  # pyright: ignore[reportArgumentType]


def parts_of(item: object) -> tuple[list[Tensor], Hashable]:
    """The tensors of a dataclass and of its parts, in order, and all its other values."""
    tensors: list[Tensor] = []
    rest: list[Hashable] = []
    for field in fields(item):  # pyright: ignore[reportArgumentType]
        value = getattr(item, field.name)
        if isinstance(value, Tensor):
            tensors.append(value)
        elif is_dataclass(value):
            inner, others = parts_of(value)
            tensors += inner
            rest.append((field.name, others))
        else:
            rest.append((field.name, value))
    return tensors, tuple(rest)


def with_tensors(item: T, tensors: Iterator[Tensor]) -> T:
    """The dataclass with these in the place of `parts_of`'s."""
    changed: dict[str, Any] = {}
    for field in fields(item):  # pyright: ignore[reportArgumentType]
        value = getattr(item, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = next(tensors)
        elif is_dataclass(value):
            changed[field.name] = with_tensors(value, tensors)
    return replace(item, **changed)  # pyright: ignore[reportArgumentType]
