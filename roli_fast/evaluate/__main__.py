"""`python -m roli_fast.evaluate`: see `--help`."""

import logging
import signal
import sys
from collections.abc import Sequence
from shlex import quote

from roli_fast.errors import InterruptedRunError, RoliFastError, WriteError
from roli_fast.evaluate.assessment import SCHEMA
from roli_fast.evaluate.cli import Command, parse
from roli_fast.evaluate.driver import run
from roli_fast.evaluate.report import table
from roli_fast.files import ROOM
from roli_fast.running.command import run_command
from roli_fast.running.ranks import Ranks

logger = logging.getLogger("roli_fast.evaluate")


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
        print(SCHEMA.to_yaml(command.assessment), end="")
        return 0
    out = command.out or command.new_folder()  # of the first process
    try:
        report = run(command.assessment, out, resume=command.resume, ranks=ranks)
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
