"""`python -m roli_fast.evaluate`: its command line; see `--help`."""

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from roli_fast.configuration import check_arguments, find_config, pairs, read_yaml
from roli_fast.configuration.usage import Usage
from roli_fast.errors import ConfigError, InterruptedRunError, RoliFastError, WriteError, describe
from roli_fast.evaluate.config import PLACE_FIELDS, SCHEMA, EvaluationConfig
from roli_fast.evaluate.prepare import IDENTITY
from roli_fast.evaluate.report import table
from roli_fast.evaluate.run import run
from roli_fast.files import ROOM
from roli_fast.running.command import run_command
from roli_fast.running.folder import CONFIG, dated, is_used
from roli_fast.running.ranks import Ranks

logger = logging.getLogger("roli_fast.evaluate")

USAGE = """\
python -m roli_fast.evaluate --model MODEL [--data NAME] [--attacks A,B] [--norm N,M --eps E,F]
                             [--config FILE] [--FIELD VALUE ...]
                             [--out DIR] [--resume] [--print_config]
torchrun --nproc-per-node=N -m roli_fast.evaluate ...

Clean and robust accuracy of a model, image by image. With torchrun the processes share the
images and find the same flags.

  --config FILE     a YAML file with the fields below
  --out DIR         where everything is written (default: evaluations/<model>-<time>, of a training
                    run's model in the run's folder, so that the run's report shows it)
  --resume          go on with what is in --out, stopped anywhere; begins there if there is nothing
  --print_config    print the whole configuration as YAML and stop

  --model runs/quickstart-20260101-120000-000000/seed-0/roli
  --model weights.safetensors --model.name vit_small_patch16_224 --data image_folder --data.root D
  --attacks pgd-50,apgd-t --norm linf,l2,l1 --eps 8/255,0.5,12 --images 500
  --attacks autoattack-apgd --unseen square-1000,autoattack-apgd@l2=1 --corruptions all
"""


@dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    config: EvaluationConfig
    out: Path | None
    resume: bool
    print_config: bool

    @property
    def run(self) -> Path | None:
        """The folder of the training run that the model is of."""
        return _run_of(Path(self.config.model.source))[0]

    def new_folder(self) -> Path:
        """evaluations/NAME-TIME, in the run's folder where there is one."""
        name = Path(self.config.model.source.replace(":", "-")).stem or "model"
        return dated(str((self.run or Path()) / "evaluations"), name)


def parse(arguments: Sequence[str]) -> Command:
    """Read the command line.

    Raises:
        ConfigError: an unknown or ill-typed field, named.
        SystemExit: after --help.
    """
    check_arguments(arguments)
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    own.add_argument("--out", type=Path)
    own.add_argument("--resume", action="store_true")
    own.add_argument("--print_config", action="store_true")
    own.add_argument("-h", "--help", nargs="?", const="")
    options, overrides = own.parse_known_args(list(arguments))
    if options.help is not None:
        print(help_text(options.help))
        raise SystemExit(0)
    out: Path | None = options.out
    if options.resume and out is None:
        raise ConfigError(
            "`--resume` goes on with the evaluation in `--out DIR`: name that folder."
        )
    resume = options.resume and out is not None and out.is_dir() and is_used(out)
    config = _resumed(options, overrides) if resume else _new(options.config, overrides)
    return Command(config, out, resume, options.print_config)


def help_text(asked: str) -> str:
    """Usage and the fields; what there is to say of the field or component that is asked for; with
    "all" the fields of every component as well."""
    usage = Usage(SCHEMA)
    if asked != "all":
        return usage.about(asked) if asked else f"{USAGE}\n{usage.overview()}"
    lines = [USAGE, "Fields:", *usage.lines(EvaluationConfig, "--"), *usage.components()]
    return "\n".join(lines)


def _new(config: str | None, overrides: Sequence[str]) -> EvaluationConfig:
    """The configuration of a file and overrides, with what a training run tells."""
    tree = read_yaml(find_config(config)) if config else {}
    given = {flag.removeprefix("--"): text for flag, text in pairs(overrides)}
    tree = _from_run(tree, given) | tree
    have = {name.partition(".")[0] for name in given} | set(tree)
    for name, fix in (
        ("model", "Write --model FILE, or a run's folder, zoo:NAME, module:factory, a timm name."),
        ("data", "Write --data NAME; only a training run's models bring their own."),
    ):
        if name not in have:
            raise ConfigError(describe(name, f"the {name} of the evaluation", "nothing", fix))
    return SCHEMA.build(tree, overrides)


def _from_run(tree: dict[str, Any], given: dict[str, str | None]) -> dict[str, Any]:
    """Data and threat of the training run that the model is of, where nothing else is asked for.

    A data set that is named is taken as it is: the run's classes or seed were for the run's own.
    """
    model = tree.get("model")
    source = given.get("model.source") or given.get("model")
    source = source or (model.get("source") if isinstance(model, dict) else model)
    if not isinstance(source, str):
        return {}
    run, out = _run_of(Path(source))[1], {}
    names = set(given) | set(tree)
    if "data" in run and "data" not in names:
        out["data"] = run["data"]
    threat = run.get("threat") or {}
    if {"norm", "eps"} <= set(threat) and not names & {"norm", "eps"}:
        out["norm"] = [threat["norm"], *(threat.get("other_norms") or ())]
        out["eps"] = [threat["eps"], *(threat.get("other_eps") or ())]
    return out


def _run_of(path: Path) -> tuple[Path | None, dict[str, Any]]:
    """The folder and the configuration of the run that a file or folder is part of; None and empty
    where there is none.

    It is read as plain YAML: what trained it need not be installed. A config.yaml of something else
    on the way up is passed over.
    """
    for folder in [path, *path.absolute().parents][:6] if path.exists() else ():
        with contextlib.suppress(ConfigError):
            tree = read_yaml(folder / CONFIG)
            if "probe" in tree or "finetune" in tree:
                return folder, tree
    return None, {}


def _resumed(options: argparse.Namespace, overrides: Sequence[str]) -> EvaluationConfig:
    """The saved configuration, which flags may repeat and not change."""
    saved = options.out / CONFIG
    if not (saved.is_file() and (options.out / IDENTITY).is_file()):
        fix = "Nothing was changed. Leave out --resume, and name a new folder."
        expected = "a folder in which an evaluation began"
        raise ConfigError(describe("--out", expected, f"'{options.out}'", fix))
    before = SCHEMA.read(saved)
    again = _new(options.config, overrides) if options.config else None
    after = again or SCHEMA.build(read_yaml(saved), overrides)
    if replace(after, **{name: getattr(before, name) for name in PLACE_FIELDS}) != before:
        raise ConfigError(
            f"`--resume` goes on with the configuration in '{saved}', and "
            f"{' '.join(overrides) or '--config'} is another. Leave it out, or name a new --out. "
            f"Only {', '.join(PLACE_FIELDS)} may change."
        )
    return after


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake, 128 + the signal's
    number after one)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    ranks = Ranks()
    try:
        ranks = Ranks.from_environment()
        if not ranks.first:
            logging.disable(logging.INFO)
        return _execute(parse(sys.argv[1:] if arguments is None else arguments), ranks)
    except InterruptedRunError as error:
        logger.log(logging.ERROR if ranks.first else logging.INFO, "%s", error)
        return 128 + error.args[1]
    except KeyboardInterrupt:
        logger.error("stopped at once; --resume goes on after the last finished search")
        return 128 + signal.SIGINT
    except RoliFastError as error:
        logger.error("error: %s", error)
        return 2


def _execute(command: Command, ranks: Ranks) -> int:
    if command.print_config:
        print(SCHEMA.to_yaml(command.config), end="")
        return 0
    out = command.out or command.new_folder()  # of the first process
    try:
        report = run(command.config, out, resume=command.resume, ranks=ranks)
    except (InterruptedRunError, WriteError) as error:
        stopped = isinstance(error, InterruptedRunError)
        done = "; finished searches are saved." if stopped else f". {ROOM}"
        again = f"{ranks.command} -m roli_fast.evaluate --out {quote(str(out))} --resume"
        raise type(error)(f"{error}{done} Go on with: {again}", *error.args[1:]) from error
    if report is not None:
        print(table(report))
        print(f"Everything is in {out}.")
        if command.run and out.resolve().is_relative_to(command.run.resolve()):
            print(f"Into the run's report: python -m roli_fast.report {quote(str(command.run))}")
    return 0


if __name__ == "__main__":
    run_command(main)
