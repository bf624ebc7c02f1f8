"""What a page is made of; page/blocks.html draws each kind."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Source:
    """A file that numbers come from; `link` leads there from the page, None for several files."""

    text: str
    link: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first cell of a row is its heading.

    Args:
        caption: what the table says, its spread and units included.
        columns: headings, the rows' one first.
        rows: as long as `columns` each.
        sources: where the numbers come from.
        terms: (term, meaning) of columns that not everybody knows.
        words: columns of words; the others are of numbers and stand to the right.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    sources: Sequence[Source] = ()
    terms: Sequence[tuple[str, str]] = ()
    words: Sequence[int] = ()

    kind = "table"


@dataclass(frozen=True)
class Chart:
    """One drawing under its title."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Key:
    """One line of a legend: the `look` and `dash` of a series."""

    label: str
    look: int
    dash: int = 0
    hollow: bool = False


@dataclass(frozen=True)
class Charts:
    """Drawings side by side that share a legend and a caption; `pairs` stand two in a row."""

    charts: Sequence[Chart]
    caption: str
    keys: Sequence[Key] = ()
    sources: Sequence[Source] = ()
    pairs: bool = False

    kind = "charts"


@dataclass(frozen=True)
class Picture:
    """One image of a gallery, as a data URI: what it is, and what is said of it."""

    uri: str
    alt: str
    what: str
    said: str


@dataclass(frozen=True)
class Example:
    """An image, what the attack made of it, and their difference."""

    pictures: Sequence[Picture]
    text: str
    fooled: bool | None


@dataclass(frozen=True)
class Gallery:
    """Examples of one model."""

    title: str
    examples: Sequence[Example]
    caption: str
    sources: Sequence[Source] = ()

    kind = "gallery"


@dataclass(frozen=True)
class Facts:
    """Names and what stands behind them."""

    items: Sequence[tuple[str, str]]
    sources: Sequence[Source] = ()

    kind = "facts"


@dataclass(frozen=True)
class Text:
    """A paragraph; `strong` ones are what a reader should not miss."""

    text: str
    strong: bool = False

    kind = "text"


@dataclass(frozen=True)
class Missing:
    """A part that is not there: what, and the command that makes it."""

    what: str
    command: str = ""

    kind = "missing"


@dataclass(frozen=True)
class Fold:
    """What is there for those who look: closed until it is opened."""

    title: str
    blocks: "Sequence[Block]" = ()
    code: str = ""

    kind = "fold"


Block = Table | Charts | Gallery | Facts | Text | Missing | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page; `short` is its name among the links. One without blocks is left out."""

    id: str
    title: str
    blocks: Sequence[Block] = ()
    short: str = ""
