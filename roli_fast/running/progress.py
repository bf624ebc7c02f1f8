"""Progress bars."""

import sys
from typing import Any

from tqdm.auto import tqdm


def progress_bar(title: str, *, total: float, quiet: bool = False, **options: Any) -> tqdm:
    """A bar in images, in a notebook too; where nobody watches, a line now and then.

    Args:
        title: stands before it.
        total: what it counts to.
        quiet: show nothing.
        **options: of tqdm, `initial` say.
    """
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    watched = notebook or sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=title,
        unit="img",
        disable=quiet,
        dynamic_ncols=watched,
        mininterval=0.2 if watched else 30.0,
        maxinterval=10.0 if watched else 60.0,
        **options,
    )
