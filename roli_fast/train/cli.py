"""The command line of `python -m roli_fast.train`."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from roli_fast.errors import ConfigError, RoliFastError, describe
from roli_fast.train.config import (
    field_types,
    find_config,
    import_class,
    pairs,
    read_yaml,
    to_class_paths,
    translate,
)
from roli_fast.train.experiment import PLACE_FIELDS, STAGES, Experiment, same_experiment
from roli_fast.train.published import recipe
from roli_fast.train.usage import help_text


@dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    experiment: Experiment
    run_dir: Path | None
    resume: bool
    print_config: bool
    name: str


def parse(arguments: Sequence[str]) -> Command:
    """Read the command line.

    Raises:
        ConfigError: an unknown or ill-typed field, named.
        SystemExit: after --help.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    own.add_argument("--recipe")
    own.add_argument("--tuning")
    own.add_argument("--run_dir", type=Path)
    own.add_argument("--resume", action="store_true")
    own.add_argument("--print_config", action="store_true")
    own.add_argument("-h", "--help", action="store_true")
    options, overrides = own.parse_known_args(list(arguments))
    if options.help:
        print(help_text())
        raise SystemExit(0)
    if options.resume:
        return _resumed(options, overrides)
    name, tree = _starting_tree(options, overrides)
    experiment = build(tree, overrides)
    if options.recipe:
        _check_reached(experiment, overrides)
    return Command(
        experiment,
        options.run_dir,
        resume=False,
        print_config=options.print_config,
        name=name or experiment.model.name,
    )


def _starting_tree(
    options: argparse.Namespace, overrides: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """A name for the run, and the configuration that the overrides change."""
    data = _given(overrides, "data")
    if options.recipe:
        if options.config:
            fix = "Write the recipe to a file with --print_config and change that."
            raise ConfigError(describe("--config", "nothing beside --recipe", options.config, fix))
        tuning = options.tuning or ""
        tree = recipe(options.recipe, data=data or "", tuning=tuning)
        return f"{options.recipe}-{data}-{tuning}", tree
    if options.tuning:
        fix = "Elsewhere set --finetune.tuning."
        raise ConfigError(describe("--tuning", "a --recipe beside it", options.tuning, fix))
    name = options.config or ("" if data else "quickstart")
    return Path(name).stem, read_yaml(find_config(name)) if name else {}


def _given(overrides: Sequence[str], field: str) -> str | None:
    """The value that the overrides give `field` itself."""
    return next(
        (text for flag, text in reversed([*pairs(overrides)]) if flag == f"--{field}"), None
    )


def _check_reached(experiment: Experiment, overrides: Sequence[str]) -> None:
    """A flag for a stage that no method runs would be a wish without effect."""
    runs = {name for method in experiment.methods for name in experiment.read_stages(method)}
    for flag, _text in pairs(overrides):
        stage = flag.removeprefix("--").partition(".")[0]
        if stage in STAGES and stage not in runs:
            raise ConfigError(
                f"`{flag}` changes nothing: {', '.join(experiment.methods)} runs "
                f"{', '.join(sorted(runs))}. Write --{sorted(runs)[-1]}..., or choose --methods."
            )


def _resumed(options: argparse.Namespace, overrides: Sequence[str]) -> Command:
    if options.run_dir is None:
        raise ConfigError("`--resume` continues the run in `--run_dir DIR`: name that folder.")
    saved = options.run_dir / "config.yaml"
    if not saved.is_file():
        raise ConfigError(
            f"`--run_dir`: expected a folder with a config.yaml to resume, got "
            f"'{options.run_dir}'. Leave out --resume to start a new run there."
        )
    tree = read_yaml(saved)
    experiment = build(tree, overrides)
    other = build(read_yaml(find_config(options.config)), []) if options.config else experiment
    if not (same_experiment(experiment, build(tree, [])) and same_experiment(other, experiment)):
        raise ConfigError(
            "`--resume` continues with the saved configuration: leave out "
            f"{' '.join(overrides) or '--config'}, or start a new run_dir with it. Only "
            f"{', '.join(PLACE_FIELDS)} may change."
        )
    return Command(
        experiment,
        options.run_dir,
        resume=True,
        print_config=options.print_config,
        name=options.run_dir.name,
    )


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
        raise ConfigError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    """jsonargparse's message, and the known fields where a component got an unknown one."""
    text = " ".join(str(error).split()) or type(error).__name__
    own = re.search(r"(`[^`]+`: expected .*?) - Expected", text)  # one of ours, inside a Union's
    if own:
        return own[1]
    found = re.search(r"class_path '([\w.]+)'.*Option '\w+' is not accepted", text)
    if found:
        text += f". Known here: {', '.join(sorted(field_types(import_class(found[1]))))}."
    return text


def build_parser() -> ArgumentParser:
    """The parser of all fields of an Experiment; errors are raised, not printed."""
    parser = ArgumentParser(exit_on_error=False, usage=argparse.SUPPRESS, add_help=False)
    parser.add_argument("--config", action="config", help=argparse.SUPPRESS)
    parser.add_class_arguments(Experiment)
    return parser
