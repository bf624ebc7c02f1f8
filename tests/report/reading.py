"""A page taken apart again by the standard library's HTML parser."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "line", "circle", "rect", "polyline", "polygon"}


class Read(HTMLParser):
    """What is on a page.

    `tables`: caption -> rows of texts; `text`: everything one reads; `tags`: (name, attributes).
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self._text: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"
        self.text = " ".join("".join(self._text).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it; a row or cell begins."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "figcaption":
            self._caption = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element without an end of its own."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """It closes what was opened last."""
        if tag in VOID:
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        """Text goes to the cell and to the whole."""
        if "style" in self.open:
            return
        self._text.append(data)
        plain = data.replace("\u00a0", " ")
        if self.open and self.open[-1] in ("td", "th"):
            self._rows[-1][-1] += plain
        elif self.open and self.open[-1] == "figcaption":
            self._caption += plain

    def table(self, beginning: str) -> list[list[str]]:
        """The rows of the table whose caption begins so."""
        found = [rows for caption, rows in self.tables.items() if caption.startswith(beginning)]
        assert len(found) == 1, f"{len(found)} of {list(self.tables)}"
        return found[0]
