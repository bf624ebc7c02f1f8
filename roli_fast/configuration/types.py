"""What a dataclass's fields are, as a configuration sees them."""

import importlib
import inspect
import re
import types
import typing
from dataclasses import fields
from functools import cache
from typing import Any, Union

import torch
from jsonargparse.typing import register_type

from roli_fast.engine.engine import DTYPES


def dtype_name(dtype: torch.dtype) -> str:
    """As a configuration writes it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def dtype_of(text: str) -> torch.dtype:
    """The dtype of a name. Raises ValueError for another one."""
    if text not in DTYPES:
        raise ValueError(f"Expected one of: {', '.join(DTYPES)}. Got value: {text}")
    return DTYPES[text]


register_type(torch.dtype, dtype_name, dtype_of)


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
    return {f.name: without_none(hints[f.name]) for f in fields(kind) if f.init}


def without_none(kind: Any) -> Any:
    """`kind` without "or None"."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        rest = [part for part in typing.get_args(kind) if part is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def element(kind: Any) -> Any:
    """X where `kind` is tuple[X, ...]; else None."""
    inner = typing.get_args(kind)
    several = typing.get_origin(kind) is tuple and len(inner) == 2 and inner[1] is Ellipsis
    return inner[0] if several else None


def descriptions(kind: type) -> dict[str, str]:
    """Field -> text of the `Args:` section, the bases' fields included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(
            r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(base.__doc__ or ""), re.M | re.S
        )
        if section:
            for name, text in re.findall(
                r"^ {4}(\w+): (.*?)(?=^ {4}\S|\Z)", section[1], re.M | re.S
            ):
                found[name] = " ".join(text.split())
    return found
