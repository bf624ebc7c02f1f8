"""`python -m roli_fast.train`: see `--help`."""

import logging
import signal
import sys
from collections.abc import Sequence

from roli_fast.errors import InterruptedRunError, RoliFastError
from roli_fast.train.cli import Command, parse
from roli_fast.train.pipeline import run
from roli_fast.train.run_directory import default_run_dir, open_run_dir
from roli_fast.train.summary import table

logger = logging.getLogger("roli_fast.train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake, 130 interrupted)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        return _execute(command)
    except InterruptedRunError as error:
        logger.error("%s", error)
        return 128 + signal.SIGINT
    except RoliFastError as error:
        logger.error("error: %s", error)
        return 2


def _execute(command: Command) -> int:
    if command.print_config:
        print(command.yaml, end="")
        return 0
    run_dir = command.run_dir or default_run_dir(command.name)
    open_run_dir(run_dir, command.yaml, resume=command.resume)
    logger.info("run directory: %s", run_dir)
    try:
        summary = run(command.experiment, run_dir)
    except InterruptedRunError as error:
        again = f"python -m roli_fast.train --run_dir {run_dir} --resume"
        raise InterruptedRunError(f"{error}; saved. Continue with: {again}") from error
    print(table(summary))
    print(f"Everything is in {run_dir}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
