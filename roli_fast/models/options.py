"""What is wrong with the options that an architecture was to be built with, or the network."""

import contextlib
import difflib
import inspect
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import timm
from huggingface_hub import constants

from roli_fast.errors import ArgumentError, describe

ELSEWHERE = {
    "num_classes": "The data says how many there are.",
    "pretrained": "Set model.pretrained.",
    "checkpoint_path": "Set model.weights.",
}
"""Argument of `timm.create_model` that is no option here -> what takes its place."""

_UNKNOWN = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
_TWICE = re.compile(r"got multiple values for keyword argument '(\w+)'")


def check_options(options: Mapping[str, Any]) -> None:
    """Raise for an option whose place is elsewhere in the configuration."""
    for name in options:
        if name in ELSEWHERE:
            field = f"model.options.{name}"
            raise ArgumentError(describe(field, "nothing", options[name], ELSEWHERE[name]))
    for name, value in options.items():
        most = 1_000 if name.startswith(("depth", "layer", "num_layers")) else 100_000
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, int) and abs(one) > most:  # building it would not end
                field = f"model.options.{name}"
                raise ArgumentError(describe(field, f"at most {most:,}", value))


def refusal(architecture: str, options: Mapping[str, Any], error: Exception) -> ArgumentError:
    """What timm's error says of `options`, by the name of the option where it is known.

    Args:
        architecture: timm's name.
        options: what it was built with.
        error: what its constructor raised.
    """
    text = first_line(error)
    unknown, twice = _UNKNOWN.search(text), _TWICE.search(text)
    if unknown and unknown[2] in options:
        name, known = unknown[2], _options_of(architecture, unknown[1])
        fix = _instead(name, known)
    elif twice and twice[1] in options:
        name = twice[1]
        fix = "The architecture sets it: leave it out, or choose another model.name."
    else:
        expected = f"options that timm's {architecture} can be built with"
        return ArgumentError(describe("model.options", expected, f"{dict(options)} ({text})"))
    expected = f"an option that timm's {architecture} takes"
    return ArgumentError(describe(f"model.options.{name}", expected, options[name], fix))


@contextlib.contextmanager
def hub_within_seconds() -> Iterator[None]:
    """Within, timm takes published weights from the cache where the hub gives no answer: its client
    would try again for a minute and more.

    Raises:
        OSError: they were needed, and are not in the cache.
    """
    reason, before = _silent_hub(), constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(reason)
    try:
        yield
    except OSError as error:  # what the hub's client raises
        if reason:
            raise OSError(f"no answer from {constants.ENDPOINT} ({reason})") from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = before


def _silent_hub() -> str:
    """Why the hub gives no answer; empty where it does."""
    try:
        urllib.request.build_opener().open(constants.ENDPOINT, timeout=5).close()
    except urllib.error.HTTPError as error:  # an answer
        error.close()
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""


def first_line(error: Exception) -> str:
    """The error's first line, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _options_of(architecture: str, class_name: str) -> list[str]:
    """Names of the arguments of the architecture's class, as far as they can be found."""
    module = sys.modules[timm.model_entrypoint(architecture.split(".")[0]).__module__]
    kind = getattr(module, class_name, None)
    if not inspect.isclass(kind):
        return []
    names = list(inspect.signature(kind).parameters)
    return [name for name in names if name not in ELSEWHERE and name != "kwargs"]


def _instead(name: str, known: list[str]) -> str:
    if name == "img_size":
        fix = "It is built for no particular size: leave it out; data.image_size or model.resize "
        return fix + "set the size of the images."
    near = difflib.get_close_matches(name, known, n=3)
    similar = f"Similar: {', '.join(near)}. " if near else ""
    return similar + (f"It takes: {', '.join(known)}." if known else "Leave it out.")
