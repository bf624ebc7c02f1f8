"""Why a model runs as it is though more was asked for: logged once a model."""

import logging
from weakref import WeakKeyDictionary

logger = logging.getLogger("roli_fast.engine")

_said: "WeakKeyDictionary[object, set[str]]" = WeakKeyDictionary()


def say_once(model: object, text: str) -> None:
    """Log `text`, a warning, unless that was done for this model; a callable that cannot be
    referred to weakly is warned of every time."""
    try:
        said = _said.setdefault(model, set())
    except TypeError:
        said = set()
    if text not in said:
        said.add(text)
        logger.warning("%s", text)


def first_line(error: BaseException) -> str:
    """The error's type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
