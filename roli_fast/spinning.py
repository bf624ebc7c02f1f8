"""Keeps OpenMP's waiting threads from burning the time of the thread they wait for.

GNU OpenMP lets a thread that has nothing to do spin for long before it sleeps. Beside
another busy process that is ruinous: a ViT of 1.2M parameters on two cores took 3,097 ms a step
instead of 80 ms, and 173 ms with 5,000 rounds, which cost at most 5 % on a calm machine.
"""

import os
import sys

_ROUNDS = "5000"


def limit_spinning() -> None:
    """Shorten the wait, in our own command-line programs only, unless the user set a policy.

    OpenMP reads the setting when torch loads it, so this runs before torch is imported. A program
    that merely imports the package keeps its own setting.
    """
    ours = any(text.startswith("roli_fast.") for text in sys.orig_argv[1:4])
    if ours and "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _ROUNDS)
