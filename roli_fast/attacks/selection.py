"""Some of the samples that a search works on."""

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
