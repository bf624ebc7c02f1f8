"""A configuration tree and flags -> Experiment."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser

from roli_fast.errors import ConfigError, RoliFastError
from roli_fast.train.config import to_class_paths, translate
from roli_fast.train.experiment import Experiment
from roli_fast.train.messages import plain_message


def build(tree: dict[str, Any], overrides: Sequence[str]) -> Experiment:
    """The experiment of a configuration tree and dotted overrides.

    Raises:
        ConfigError: what is wrong, with the field's name.
    """
    parser = build_parser()
    try:
        plain = json.dumps(to_class_paths(tree))
        config = parser.parse_args(["--config", plain, *translate(overrides)])
        values = parser.instantiate(config)
        return Experiment(**{f.name: values[f.name] for f in fields(Experiment)})
    except RoliFastError:
        raise
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(plain_message(error)) from error


def build_parser() -> ArgumentParser:
    """The parser of all fields of an Experiment; errors are raised, not printed."""
    parser = ArgumentParser(exit_on_error=False, usage=argparse.SUPPRESS, add_help=False)
    parser.add_argument("--config", action="config", help=argparse.SUPPRESS)
    parser.add_class_arguments(Experiment)
    return parser
