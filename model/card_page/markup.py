"""Parts of the page as HTML. Text is always escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: its title.
        columns: headers of the columns; none for a table of names and values.
        rows: cells by row.
        note: explanation of the figures.
        text_columns: number of leading columns that contain text.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    text_columns: int = 1

    def as_html(self) -> str:
        """Return the table, which scrolls in its own container, below its title."""
        title = escape(self.title)
        head = f"<thead><tr>{self._cells(self.columns, 'col')}</tr></thead>" if self.columns else ""
        body = "".join(f"<tr>{self._cells(row, 'row')}</tr>" for row in self.rows)
        return (
            f'<h3>{title}</h3><div class="scroll" tabindex="0" role="group" aria-label="{title}">'
            f"<table>{head}<tbody>{body}</tbody></table></div>{paragraph(self.note) if self.note else ''}"
        )

    def _cells(self, cells: Sequence[str], scope: str) -> str:
        return "".join(self._cell(place, cell, scope) for place, cell in enumerate(cells))

    def _cell(self, place: int, cell: str, scope: str) -> str:
        name = ' class="name"' if place < self.text_columns else ""
        is_header = (scope == "col" and cell) or (scope == "row" and not place)
        return f'<th scope="{scope}"{name}>{escape(cell)}</th>' if is_header else f"<td{name}>{escape(cell)}</td>"


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        file: its address, relative to the page.
        caption: text below the picture.
    """

    file: str
    caption: str

    def as_html(self) -> str:
        """Return the picture; the caption also stands for it where it is not shown."""
        caption = escape(self.caption)
        return f'<figure><img src="{escape(self.file)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


Block = Table | Picture


def escape(text: str) -> str:
    """Escape text for elements and attributes; a number and its percent sign stay on one line."""
    return html.escape(text).replace(" %", "&nbsp;%")


def paragraph(text: str) -> str:
    """Make a paragraph."""
    return f"<p>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """Make a list."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def figures(entries: Mapping[str, tuple[str, str]]) -> str:
    """Make the tiles of the headline figures: value and explanation by name."""
    tiles = (
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd><dd>{escape(note)}</dd></div>'
        for name, (value, note) in entries.items()
    )
    return f'<dl class="figures">{"".join(tiles)}</dl>'


def strip(file: str, captions: Sequence[str], first: int, count: int) -> str:
    """Show some of the square pictures that a file has side by side, each with its caption.

    Args:
        file: address of the file, relative to the page.
        captions: of the pictures shown.
        first: index of the first of them in the file.
        count: number of pictures in the file.
    """
    items = (
        f'<li><svg viewBox="{first + place} 0 1 1" role="img" aria-label="{escape(caption)}">'
        f'<image href="{escape(file)}" width="{count}" height="1" preserveAspectRatio="none"/></svg>'
        f'<span aria-hidden="true">{escape(caption)}</span></li>'
        for place, caption in enumerate(captions)
    )
    return f'<ul class="pictures">{"".join(items)}</ul>'


def folded(title: str, content: str) -> str:
    """Make a section that opens on a click."""
    return f"<details><summary><h2>{escape(title)}</h2></summary>{content}</details>"
