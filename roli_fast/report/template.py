"""The HTML around the blocks of a page."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from roli_fast.report.read import Run


def render(runs: Sequence[Run], folder: Path) -> str:
    """The page as text.

    Args:
        runs: one, or several to compare.
        folder: where the page will lie; links to files lead from there.
    """
    environment = Environment(
        loader=PackageLoader("roli_fast.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(runs=runs)
