"""What the fields of a dataclass are, and values of files and flags as their types want them."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, Literal, Union

import torch

from roli_fast.configuration.files import load_yaml
from roli_fast.engine.engine import DTYPES
from roli_fast.errors import ConfigError, RoliFastError, describe

NULL = ("null", "None", "none")

_NUMBERS = re.compile(r"^-?[\d./eE+-]+(,-?[\d./eE+-]+)+$")

_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


@contextmanager
def inside(where: str, known: Container[str] | None = None) -> Iterator[None]:
    """Within, errors of a part of a configuration name the whole field: `lr` becomes
    `finetune.optimizer.lr`.

    Args:
        where: the part's path; "" leaves them as they are.
        known: the fields that are in it, where messages may begin with other names too.
    """
    try:
        yield
    except RoliFastError as error:
        text = str(error)
        first = re.match(r"`(\w+)", text)
        if not where or known is not None and (first is None or first[1] not in known):
            raise
        text = f"`{where}.{text[1:]}" if text.startswith("`") else f"`{where}`: {text}"
        raise type(error)(text, *error.args[1:]) from error


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of a tree of plain values."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        within = isinstance(value, Mapping)
        out |= flat(value, f"{prefix}{name}.") if within else {prefix + name: value}
    return out


class Text(str):
    """A value as it was written on the command line: what it stands for depends on its field."""

    __slots__ = ()


def dtype_name(dtype: torch.dtype) -> str:
    """As a configuration writes it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


@cache
def hints(kind: type) -> dict[str, Any]:
    """The fields of a dataclass and their types."""
    found = typing.get_type_hints(kind)
    return {f.name: found[f.name] for f in fields(kind) if f.init}


@cache
def field_types(kind: type) -> dict[str, Any]:
    """The fields of a dataclass and their types, None left out of optional ones."""
    return {name: without_none(hint) for name, hint in hints(kind).items()}


@cache
def may_be_null(kind: type) -> frozenset[str]:
    """The fields of a dataclass that may be None: by their type, or by their default."""
    found = {f.name for f in fields(kind) if f.default is None}
    return frozenset(found | {name for name, hint in hints(kind).items() if _optional(hint)})


def default_of(kind: type, name: str) -> Any:
    """The default of a dataclass' field; MISSING where it has none."""
    (field,) = (f for f in fields(kind) if f.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def without_none(kind: Any) -> Any:
    """`kind` without "or None" and "or a callable", which no configuration can write."""
    if _is_union(kind):
        parts = (part for part in typing.get_args(kind) if part is not type(None))
        rest = [part for part in parts if typing.get_origin(part) is not Callable]
        return rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007
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
        text = inspect.cleandoc(base.__doc__ or "")
        if section := re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.M | re.S):
            entries = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\S|\Z)", section[1], re.M | re.S)
            found |= {name: " ".join(told.split()) for name, told in entries}
    return found


def convert(value: Any, kind: Any, where: str, *, null: bool = False) -> Any:
    """A plain value, or the `Text` of a flag, as a field of this type has it.

    Args:
        value: from YAML or JSON, or `Text`.
        kind: a plain type, Literal, union, tuple, list or dict; anything else is not looked at.
        where: the field's dotted path, for messages.
        null: whether None will do.

    Raises:
        ConfigError: it does not fit; with what was expected.
    """
    if value is None or isinstance(value, Text) and value in NULL and (null or kind is not str):
        if null or _optional(kind) or kind is Any:
            return None
        raise ConfigError(describe(where, _expected(kind), "null"))
    kind, origin = without_none(kind), typing.get_origin(kind)
    inner = typing.get_args(kind)
    if origin is tuple:
        return _tuple(value, kind, where, null)
    if _is_union(kind):
        return _one_of(value, kind, where)
    found = _parsed(value, kind) if isinstance(value, Text) else value
    if origin in (dict, Mapping) and isinstance(found, Mapping):
        return {name: convert(v, inner[1], f"{where}.{name}") for name, v in found.items()}
    if origin is list and isinstance(found, list):
        return [convert(v, inner[0], where) for v in found]
    if kind is float and type(found) is int:
        return float(found)
    if kind is torch.dtype and found in DTYPES:
        return DTYPES[found]
    if not _fits(found, kind):
        raise ConfigError(describe(where, _expected(kind, null), _shown(value)))
    return found


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in typing.get_args(kind))
    if kind in _WORDS:
        return type(value) is kind
    return kind is not torch.dtype and typing.get_origin(kind) not in (dict, Mapping, list)


def _parsed(text: str, kind: Any) -> Any:
    """What a flag's text is as a value of this type; the text itself where it is none."""
    if kind in (str, torch.dtype) or text in typing.get_args(kind):
        return str(text)
    try:
        if kind is Any and _NUMBERS.match(text):  # an option of timm's, "4,4,8"
            return [load_yaml(part) for part in text.split(",")]
        return load_yaml(text)
    except ValueError:
        return str(text)


def _tuple(value: Any, kind: Any, where: str, null: bool) -> tuple[Any, ...]:
    """Values of a list, or of a flag's text, which separates them by commas."""
    if isinstance(value, Text):
        value = _parsed(value, list) if value.startswith("[") else value.split(",") if value else []
        if isinstance(value, list):
            value = [Text(one) if isinstance(one, str) else one for one in value]
    if not isinstance(value, (list, tuple)):
        what = "several values" + (" or null" if null else "")
        cut = str(value).startswith("[")
        fix = "Close the bracket." if cut else f"Of one, write [{value}]."
        raise ConfigError(describe(where, what, _shown(value), fix))
    kinds = typing.get_args(kind)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        fix = "Separate them by commas, without spaces."
        got = _shown(",".join(map(str, value)))
        raise ConfigError(describe(where, f"{len(kinds)} values", got, fix))
    return tuple(convert(one, own, where) for one, own in zip(value, kinds, strict=True))


def _one_of(value: Any, kind: Any, where: str) -> Any:
    """The first of a union's types that the value fits."""
    kinds = typing.get_args(kind)
    for one in kinds:
        try:
            return convert(value, one, where)
        except ConfigError:
            continue
    raise ConfigError(describe(where, ", or ".join(map(_expected, kinds)), _shown(value)))


def _expected(kind: Any, null: bool = False) -> str:
    kind = without_none(kind)
    known = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    known = tuple(DTYPES) if kind is torch.dtype else known
    if known:
        words = f"{'one of: ' if len(known) > 1 else ''}{', '.join(map(str, known))}"
    elif typing.get_origin(kind) in (dict, Mapping):
        words = "fields"
    else:
        words = _WORDS.get(kind, "several values")
    return f"{words} or null" if null else words


def _shown(value: Any) -> str:
    return repr(str(value)) if isinstance(value, str) else repr(value)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _optional(kind: Any) -> bool:
    return _is_union(kind) and type(None) in typing.get_args(kind)
