"""Reading a page of ``megalit report`` as its reader sees it."""

from html.parser import HTMLParser
from pathlib import Path

from megalit.scaling.report import PAGE, find_runs, write_report


class Page(HTMLParser):
    """The parts of a report that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self._cell: list[str] | None = None
        self._heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.links += [values[name] or "" for name in ("href", "src", "data", "action") if name in values]
        if "id" in values:
            self.ids.append(values["id"] or "")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag == "h2":
            self.headings.append("")
            self._heading = True
        elif tag == "img":
            self.images.append(values["alt"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None
        elif tag == "h2":
            self._heading = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell.append(data)
        if self._heading:
            self.headings[-1] += data

    def table(self, first: str) -> list[dict[str, str]]:
        """The rows of the last table whose header begins so: those of settings and of runs end the page."""
        rows = next(table for table in reversed(self.tables) if table[0][0] == first)
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]

    def numbers(self, heading: str) -> list[dict[str, str]]:
        """The numbers behind a figure."""
        rows = self.tables[self.headings.index(heading)]
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def report(folder: Path, *places: str) -> Page:
    write_report(find_runs(places or [str(folder / "runs")]), folder / "report")
    return Page((folder / "report" / PAGE).read_text())
