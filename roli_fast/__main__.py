"""`python -m roli_fast`: what there is to run; --version."""

import sys
from collections.abc import Sequence

import roli_fast
from roli_fast.running.command import run_command

COMMANDS = """\
python -m roli_fast.train      adversarial probing and fine-tuning; alone it runs a demo
python -m roli_fast.evaluate   a model under attacks, with intervals; resumes
python -m roli_fast.analyze    why a run came out as it did
python -m roli_fast.report     the page of a run, or of several beside each other
python -m roli_fast.export     a trained model as plain weights, torch.export and ONNX
python -m roli_fast.merge      the line between two fine-tunes, with its accuracies
python -m roli_fast.zoo        published robust backbones: list, get, check
python -m roli_fast.doctor     what was built, and what runs where
Each tells more with --help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the version with --version, else the commands; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    print(roli_fast.__version__ if "--version" in given else COMMANDS)
    return 0 if set(given) <= {"--version", "--help", "-h"} else 2


if __name__ == "__main__":
    run_command(main)
