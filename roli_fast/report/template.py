"""A page from its runs: the parts in their order, and the HTML around them."""

import functools
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from roli_fast.report.against import against_eps
from roli_fast.report.assessed import assessed
from roli_fast.report.blocks import Block
from roli_fast.report.calibrated import calibrated
from roli_fast.report.compare import compare
from roli_fast.report.costs import costs
from roli_fast.report.curves import training
from roli_fast.report.demanded import demanded
from roli_fast.report.examples import examples
from roli_fast.report.files_read import files_read
from roli_fast.report.heads import heads
from roli_fast.report.read import Run
from roli_fast.report.results import findings, headline, results
from roli_fast.report.setting import note, setting
from roli_fast.report.subjects import Page
from roli_fast.report.text import count, listed

ONE = (
    results,
    setting,
    against_eps,
    assessed,
    examples,
    training,
    heads,
    demanded,
    calibrated,
    costs,
    files_read,
)
"""The parts of a run's page, what is asked first first."""

SEVERAL = (
    compare,
    results,
    against_eps,
    assessed,
    training,
    heads,
    demanded,
    calibrated,
    costs,
    files_read,
)
"""The parts of a page on several runs."""


def render(runs: Sequence[Run], folder: Path) -> str:
    """The page as text.

    Args:
        runs: one, or several to compare.
        folder: where the page will lie; links to files lead from there.
    """
    page = Page(tuple(runs), folder)
    sections = [make(page) for make in (SEVERAL if page.several else ONE)]
    lead: list[str] = []
    notes: list[Block] = []
    if page.several:
        title = f"{count(len(runs), 'runs')} compared"
        lead.append(f"{listed(page.names)}.")
    else:
        title = runs[0].name
        lead += [headline(runs[0]), *findings(runs[0])]
        notes += note(runs[0])
    environment = _environment()
    style = environment.loader.get_source(environment, "style.css")[0]  # type: ignore[union-attr]
    return environment.get_template("page.html").render(
        title=title,
        lead=lead,
        notes=notes,
        sections=[section for section in sections if section.blocks],
        style=Markup(style),  # noqa: S704 - the package's own file
    )


@functools.cache
def _environment() -> Environment:
    """The templates, compiled once a process."""
    return Environment(
        loader=PackageLoader("roli_fast.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
