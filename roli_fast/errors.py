"""Exception types, and the one sentence every bad-input message follows.

A message names the argument, says what was expected, shows what came, and gives the fix:
"`eps`: expected a number > 0 or a tensor of shape (B,), got -0.1. Write 8/255 for pixel units."
The text itself stands beside the check that raises it.
"""

import numbers


class RoliFastError(Exception):
    """Base of every error that roli_fast raises on purpose."""


class ArgumentError(RoliFastError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class ArgumentTypeError(RoliFastError, TypeError):
    """An argument has a type, dtype or device that cannot be used."""


class ConfigError(RoliFastError, ValueError):
    """A configuration file or flag is wrong."""


class DataError(RoliFastError, ValueError):
    """An image, a label or a split file cannot be used."""


class CheckpointError(RoliFastError, ValueError):
    """A weight file or checkpoint is missing, damaged or does not fit the model."""


class DownloadError(RoliFastError, OSError):
    """A file could not be fetched; nothing of it is kept."""


class WriteError(RoliFastError, OSError):
    """A file could not be written; what stood there before is whole."""


class RunDirectoryError(RoliFastError, ValueError):
    """A run directory exists already, or belongs to another experiment."""


class MissingPackageError(RoliFastError, ImportError):
    """Another library that was asked for is not installed."""


class NonFiniteLossError(RoliFastError, ArithmeticError):
    """Training met a NaN or infinite loss; the last good checkpoint is untouched."""


class CollapseError(RoliFastError, ArithmeticError):
    """Single-step training collapsed before there was an epoch to go back to."""


class PeerError(RoliFastError, RuntimeError):
    """Another process of the same run stopped on an error of its own, or is gone."""


class OutOfMemoryError(RoliFastError, MemoryError):
    """A batch does not fit into a device's memory; the message names its size."""


class InterruptedRunError(RoliFastError):
    """A run stopped on a signal after saving its state; `--resume` continues it.

    Its arguments are the message and the signal's number.
    """

    def __str__(self) -> str:
        return str(self.args[0])


def describe(name: str, expected: str, got: object, fix: str = "") -> str:
    """The message for a wrong `name`: what was expected, what came, and how to mend it."""
    text = f"`{name}`: expected {expected}, got {got}."
    return f"{text} {fix}" if fix else text


def is_number(value: object, kind: type = numbers.Real) -> bool:
    """Whether `value` is a number (NumPy's too), or with `numbers.Integral` an integer; True is
    none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise unless `value` is one of `choices`; 1 is not True."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        listed = " or ".join(repr(choice) for choice in choices)
        raise ArgumentError(describe(name, listed, repr(value)))


def check_utf8(name: str, text: str) -> None:
    """Raise unless `text` can be written into a file; of other bytes Python makes surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(describe(name, "text in UTF-8", ascii(text))) from error
