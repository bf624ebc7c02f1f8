"""`python -m roli_fast.train`: see `--help`."""

import logging
import signal
import sys
from collections.abc import Sequence
from shlex import quote

from tqdm.contrib.logging import logging_redirect_tqdm

from roli_fast.errors import ConfigError, InterruptedRunError, RoliFastError, WriteError, describe
from roli_fast.files import ROOM
from roli_fast.report.writing import REPORT
from roli_fast.running.command import run_command
from roli_fast.running.folder import dated
from roli_fast.running.ranks import Ranks
from roli_fast.train.cli import Command, parse
from roli_fast.train.experiment import SCHEMA
from roli_fast.train.pipeline import run
from roli_fast.train.summary import analysis_table, table
from roli_fast.train.sweep import run_sweep, sweep_table

logger = logging.getLogger("roli_fast.train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake, 128 + the signal's
    number after one)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    ranks = Ranks()
    try:
        ranks = Ranks.from_environment()
        if not ranks.first:
            logging.disable(logging.WARNING)
        command = parse(sys.argv[1:] if arguments is None else arguments)
        with logging_redirect_tqdm():  # lines of the log above a bar, not behind it
            return _execute(command, ranks)
    except InterruptedRunError as error:
        logger.log(logging.ERROR if ranks.first else logging.WARNING, "%s", error)
        return 128 + error.args[1]
    except KeyboardInterrupt:
        logger.error("stopped at once; --resume continues from the last checkpoint")
        return 128 + signal.SIGINT
    except RoliFastError as error:
        logger.error("error: %s", error)
        return 2


def _execute(command: Command, ranks: Ranks) -> int:
    if command.print_config:
        if ranks.first:
            print(SCHEMA.to_yaml(command.experiment), end="")
        return 0
    if command.axes and ranks.world > 1:
        got = f"{ranks.world} processes of torchrun"
        fix = "Sweep with python -m roli_fast.train, or run the cells one by one."
        raise ConfigError(describe("--sweep", "one process", got, fix))
    run_dir = command.run_dir or dated("runs", command.name)
    try:
        if command.axes:
            summary = run_sweep(command.experiment, command.axes, run_dir, resume=command.resume)
            print(sweep_table(summary))
        else:
            summary = run(command.experiment, run_dir, resume=command.resume)
    except (InterruptedRunError, WriteError) as error:
        done = "; saved." if isinstance(error, InterruptedRunError) else f". {ROOM}"
        again = f"{ranks.command} -m roli_fast.train --run_dir {quote(str(run_dir))} --resume"
        raise type(error)(f"{error}{done} Continue with: {again}", *error.args[1:]) from error
    if not ranks.first:
        return 0
    print(table(summary))
    try:
        if more := analysis_table(run_dir, list(summary["methods"])):
            print(f"\n{more}")
    except Exception as error:  # damaged files of an analysis; the run is whole
        logger.warning("no table of the analysis: %s: %s", type(error).__name__, error)
    page = f" Read {run_dir / REPORT} in a browser." if (run_dir / REPORT).is_file() else ""
    print(f"Everything is in {run_dir}.{page}")
    return 0


if __name__ == "__main__":
    run_command(main)
