"""The command line of `python -m roli_fast.analyze`."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roli_fast.errors import ConfigError, describe

DEEP = ("ft_ratio", "head_scale", "kernel")
"""The parts that are made when asked for."""

USAGE = """\
python -m roli_fast.analyze RUN [RUN ...] [--ft_ratio] [--head_scale] [--kernel] [--all]
                            [--methods A,B] [--seeds 0,1] [--images N] [--memory 2GiB]
                            [--device NAME] [--workers N] [--again]

Why a training run came out as it did: what each stage did to head and features, and how far the
confidence of the final model can be trusted. Reads a run's folder, makes what is missing of
seed-S/METHOD/analysis.json, and writes report.html anew. Stopped, the same command goes on.

  RUN               a folder that python -m roli_fast.train wrote, a sweep's too, or one method in
                    it: runs/quickstart-20260101-120000-000000/seed-0/roli
  (always)          head norms, residuals, feature drift, separation, calibration, accuracy against
                    eps: what training itself leaves; seconds
  --ft_ratio        the first update of each stage to first order: FT ratio, predicted and actual
                    change of the features. One gradient and one Jacobian product; minutes
  --head_scale      the same with the head times 0.1, 1 and 10
  --kernel          the whole tangent kernel P + F at each stage's start: rank, spectrum, kernel
                    regression. N images of C classes take a gradient for each of N x C logits, and
                    (N C)^2 numbers: small N only, 50 unless --images says otherwise
  --all             the three of them
  --methods A,B     these methods alone
  --seeds 0,1       these seeds alone
  --images N        images of each split, for what this call makes (where training's own analysis
                    stays within 5 % of the training)
  --memory 2GiB     what a kernel may take
  --device NAME     auto, cpu, cuda (auto)
  --workers N       processes that decode images (as the run had)
  --again           make what is there already anew
"""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    runs: tuple[Path, ...]
    deep: tuple[str, ...] = ()
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    images: int | None = None
    memory: int = 2**31
    device: str = "auto"
    workers: int | None = None
    again: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(f"{message}. `python -m roli_fast.analyze --help` lists the options.")


def parse(arguments: Sequence[str]) -> Command:
    """Read the command line.

    Raises:
        ConfigError: an unknown or ill-typed option, named.
        SystemExit: after --help.
    """
    own = _Parser(add_help=False, allow_abbrev=False)
    own.add_argument("runs", nargs="*", type=Path)
    for name in (*DEEP, "all", "again"):
        own.add_argument(f"--{name}", action="store_true")
    own.add_argument("--methods", type=lambda text: tuple(text.split(",")))
    own.add_argument("--seeds")
    own.add_argument("--images")
    own.add_argument("--memory", default="2GiB")
    own.add_argument("--device", default="auto")
    own.add_argument("--workers")
    own.add_argument("-h", "--help", action="store_true")
    options = own.parse_args(list(arguments))
    if options.help:
        print(USAGE, end="")
        raise SystemExit(0)
    if not options.runs:
        fix = "Name a folder that python -m roli_fast.train wrote."
        raise ConfigError(describe("RUN", "one or more runs", "none", fix))
    return Command(
        runs=tuple(options.runs),
        deep=tuple(name for name in DEEP if options.all or getattr(options, name)),
        methods=options.methods,
        seeds=_seeds(options.seeds),
        images=_integer("--images", options.images, 1),
        memory=_bytes(options.memory),
        device=options.device,
        workers=_integer("--workers", options.workers, 0),
        again=options.again,
    )


def _integer(flag: str, text: str | None, least: int) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise ConfigError(describe(flag, f"an integer >= {least}", repr(text)))
    return int(text)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigError(describe("--seeds", "integers, separated by commas", repr(text)))
    return tuple(map(int, text.split(",")))


def _bytes(text: str) -> int:
    """ "2GiB", "500M", "1e9" in bytes."""
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    try:
        size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    except ValueError:
        size = 0
    if size < 1:
        raise ConfigError(describe("--memory", "a size, 2GiB or 500MB say", repr(text)))
    return size
