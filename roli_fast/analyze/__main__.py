"""`python -m roli_fast.analyze`: see `--help`."""

import logging
import signal
import sys
from collections.abc import Sequence

from roli_fast.analyze.cli import parse
from roli_fast.analyze.work import run
from roli_fast.errors import InterruptedRunError, RoliFastError

logger = logging.getLogger("roli_fast.analyze")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake, 128 + the signal's
    number after one)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        for line in run(parse(sys.argv[1:] if arguments is None else arguments)):
            print(line)
        return 0
    except InterruptedRunError as error:
        logger.error("%s; finished parts are saved: the same command goes on", error)
        return 128 + error.args[1]
    except KeyboardInterrupt:
        logger.error("stopped at once; the same command goes on after the last finished part")
        return 128 + signal.SIGINT
    except RoliFastError as error:
        logger.error("error: %s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
