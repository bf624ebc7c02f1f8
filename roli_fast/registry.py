"""Name -> component tables. A new component is one new file that registers itself."""

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

from roli_fast.errors import ArgumentError, describe

T = TypeVar("T")
C = TypeVar("C")


class Registry(Generic[T]):
    """A read-mostly mapping from a lower-case name to a component.

    Contract tests are parametrised over registries, so a registered component is a tested one.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Decorator: file the component under `name`; a name is taken once."""

        def add(item: C) -> C:
            if name in self._items:
                raise ArgumentError(describe("name", f"a new name for a {self.kind}", repr(name)))
            self._items[name] = cast(T, item)
            return item

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except (KeyError, TypeError):  # a list, say, cannot be looked up
            known = ", ".join(self.names())
            raise ArgumentError(describe(self.kind, f"one of: {known}", repr(name))) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> tuple[str, ...]:
        """The registered names, sorted."""
        return tuple(sorted(self._items))

    def name_of(self, item: T) -> str:
        """The name under which `item` was registered."""
        for name, value in self._items.items():
            if value is item:
                return name
        raise ArgumentError(describe(self.kind, "a registered component", repr(item)))


def load_components(package: str, path: Iterable[str]) -> None:
    """Import every module of a package so that its components register themselves."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


def import_object(field: str, address: str) -> Any:
    """What "module:name" stands for; modules are looked for from the current folder on, too.

    Args:
        field: the configuration's field, for messages.
        address: module and name.

    Raises:
        ArgumentError: there is no such module or name, or the module raised an error.
    """
    module, _, name = address.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever somebody's module raises
        got = f"'{address}' ({type(error).__name__}: {error})"
        fix = "Modules are looked for in the current folder, too."
        raise ArgumentError(
            describe(field, "module:name that can be imported", got, fix)
        ) from error
