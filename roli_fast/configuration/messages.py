"""jsonargparse's complaints in this package's words: the argument, what was expected, the fix."""

import re
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from roli_fast.configuration.types import field_types, import_class
from roli_fast.errors import ConfigError, describe

FieldAt = Callable[[str], Any]
"""Dotted path -> the type of the field there; ConfigError for an unknown one."""

_KEY = re.compile(r'Parser key "([\w.]+)"')
_EXPECTED = re.compile(
    r"Expected an? (?:<class '(?P<plain>\w+)'>|typing\.Literal\[(?P<literal>[^\]]*)\]|"
    r"tuple with (?P<count>\d+) elements)\. Got value: (?P<got>.*?)(?= - |$)"
)
_OR_NULL = re.compile(r"Expected an? <class '(\w+)'> - Expected a <class 'NoneType'>.*value: (.*)$")
_ONE_OF = re.compile(r"Expected one of: ([\w, ]+)\. Got value: (.*)$")
_WORD_OR = re.compile(r"Subtypes: \[typing\.Literal\[(.*?)\], <class '(\w+)'>\].*value: (.*)$")
_GROUP = re.compile(r"Unable to load config '(.*?)' - ")
_OWN = re.compile(r"(`[^`]+`: expected .*?) - Expected")
_ONE_FOR_SEVERAL = re.compile(r"NestedArg\(key='\w+', val='?(.*?)'?\)")
_UNKNOWN = re.compile(r"class_path '([\w.]+)'.*Option '(\w+)' is not accepted")
_REQUIRED = re.compile(r"class_path '([\w.]+)'.*following arguments are required: ([\w, ]+)")
_WORDS = {"int": "an integer", "float": "a number", "str": "text", "bool": "true or false"}
_MANY = {"int": "integers", "float": "numbers", "str": "names", "bool": "true or false"}


def plain_message(error: Exception, field_at: FieldAt) -> str:
    """One sentence for what jsonargparse raised; its own text where none of ours fits."""
    text = " ".join(str(error).split()) or type(error).__name__
    if own := _OWN.search(text):  # one of ours, inside a Union's
        return own[1]
    keys = _KEY.findall(text)
    if not keys:
        return text
    where = keys[0]
    if found := _UNKNOWN.search(text):
        return f"unknown field `{where}.{found[2]}`. Known here: {_fields(import_class(found[1]))}."
    if found := _REQUIRED.search(text):
        flags = " ".join(f"--{where}.{name.strip()} ..." for name in found[2].split(","))
        fields = ", ".join(f"{where}.{name.strip()}" for name in found[2].split(","))
        return describe(fields, "a value, there is no default", "nothing", f"Add {flags}")
    inner = next((key for key in keys if key != where and "." not in key), "")
    path = where if not inner or where.endswith(f".{inner}") else f"{where}.{inner}"
    if found := _GROUP.search(text):
        return _group(where, found[1], _kind(where, field_at))
    if found := _ONE_OF.search(text):
        return describe(path, f"one of: {found[1]}", repr(found[2]))
    if found := _WORD_OR.search(text):
        words = found[1].replace("'", "")
        return describe(path, f"{words}, or {_WORDS.get(found[2], found[2])}", repr(found[3]))
    if found := _EXPECTED.search(text):
        return _value(path, found, _kind(path, field_at))
    if found := _OR_NULL.search(text):
        return _or_null(path, found[1], found[2])
    return text


def _group(path: str, got: str, kind: object) -> str:
    if not isinstance(kind, type) or not is_dataclass(kind):
        return describe(path, "a value of its own kind", repr(got))
    known = _fields(kind)
    first = next(iter(field_types(kind)))
    fix = f"Write --{path}.{first} VALUE; known here: {known}."
    return describe(path, "its fields, one by one", repr(got), fix)


def _value(path: str, found: re.Match[str], kind: object) -> str:
    got = repr(found["got"].strip("'\""))
    if found["literal"]:
        return describe(path, f"one of: {found['literal']}".replace("'", ""), got)
    several = typing.get_origin(kind) is tuple
    if found["count"]:
        fix = "Separate them by commas, without spaces."
        return describe(path, f"{found['count']} values", got, fix)
    if several:
        many = _MANY.get(found["plain"], found["plain"])
        fix = f"Separate them by commas, without spaces: --{path} {_example(found['plain'])}"
        return describe(path, many, got, fix)
    return describe(path, _WORDS.get(found["plain"], found["plain"]), got)


def _or_null(path: str, kind: str, got: str) -> str:
    if one := _ONE_FOR_SEVERAL.search(got):
        return describe(path, "several values or null", one[1], f"Of one, write [{one[1]}].")
    return describe(path, f"{_WORDS.get(kind, kind)} or null", repr(got))


def _example(kind: str) -> str:
    return {"int": "0,1,2", "float": "0.1,0.2,0.3"}.get(kind, "one,two")


def _kind(path: str, field_at: FieldAt) -> object:
    try:
        return field_at(path)
    except ConfigError:
        return None


def _fields(kind: type) -> str:
    return ", ".join(sorted(field_types(kind)))
