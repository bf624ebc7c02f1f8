"""Other libraries, imported when they are asked for and not before."""

from importlib import import_module
from typing import Any

from roli_fast.errors import MissingPackageError


def library(module: str, package: str) -> Any:
    """The module, or an error that says how to install it.

    Args:
        module: dotted name.
        package: what pip calls it.

    Raises:
        MissingPackageError: it, or something that it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        text = f"{module} cannot be imported ({error}). Install it: pip install {package}"
        raise MissingPackageError(text, name=error.name) from error
