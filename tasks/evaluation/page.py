"""One self-contained HTML page: style, tables and media inside the file, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.views import Image
from tasks.evaluation.drawing import encode_jpeg, encode_png

_STYLE = Path(__file__).with_suffix(".css")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A table's column."""

    title: str
    number: bool = False
    hint: str = ""


@dataclass
class Page:
    """Builds a page from top to bottom; every text handed in is escaped."""

    title: str
    _parts: list[str] = field(default_factory=list)

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading."""
        self._parts.append(f"<h{level}>{html.escape(text)}</h{level}>")

    def paragraph(self, text: str, *, soft: bool = False) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p{_class('soft' if soft else '')}>{html.escape(text)}</p>")

    def verdict(self, text: str, good: bool | None) -> None:
        """Add the one sentence that matters, marked as good, bad or neither."""
        kind = {True: " good", False: " bad", None: ""}[good]
        self._parts.append(f'<p class="verdict{kind}">{html.escape(text)}</p>')

    def facts(self, facts: Mapping[str, str]) -> None:
        """Add names and values."""
        rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
        self._parts.append(f"<dl>{rows}</dl>")

    def tiles(self, tiles: Mapping[str, str]) -> None:
        """Add large numbers with a word under each."""
        cells = "".join(
            f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>' for name, value in tiles.items()
        )
        self._parts.append(f'<div class="tiles">{cells}</div>')

    def table(
        self, columns: Sequence[Column], rows: Iterable[Sequence[str | tuple[str, str]]], *, strong: frozenset[int] = frozenset()
    ) -> None:
        """Add a table; a cell is a text, or a text and a small remark beside it. `strong` rows stand out."""
        head = "".join(
            f"<th{_class('number' if c.number else '')}{f' title={_attribute(c.hint)}' if c.hint else ''}>{html.escape(c.title)}</th>"
            for c in columns
        )
        body = []
        for index, row in enumerate(rows):
            cells = "".join(
                f'<td class="{"number" if column.number else "text"}">{_cell(cell)}</td>' for column, cell in zip(columns, row, strict=True)
            )
            body.append(f"<tr{_class('strong' if index in strong else '')}>{cells}</tr>")
        self._parts.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>')

    def picture(self, image: Image, caption: str) -> None:
        """Add a picture, stored in the page as JPEG; `caption` is also what a reader without pictures gets."""
        data = base64.b64encode(encode_jpeg(image)).decode()
        alt = _attribute(caption)
        self._parts.append(
            f'<figure class="wide"><figcaption>{html.escape(caption)}</figcaption>'
            f'<img alt={alt} src="data:image/jpeg;base64,{data}"></figure>'
        )

    def plot(self, image: Image, caption: str) -> None:
        """Add a picture of lines and letters, stored in the page as PNG and never wider than the reader's window."""
        data = base64.b64encode(encode_png(image)).decode()
        size = f'width="{image.shape[1]}" height="{image.shape[0]}"'
        self._parts.append(
            f"<figure><figcaption>{html.escape(caption)}</figcaption>"
            f'<img alt={_attribute(caption)} {size} src="data:image/png;base64,{data}"></figure>'
        )

    def video(self, mp4: bytes, caption: str) -> None:
        """Add a video, stored in the page."""
        data = base64.b64encode(mp4).decode()
        self._parts.append(
            f'<figure class="wide"><figcaption>{html.escape(caption)}</figcaption>'
            f'<video controls loop muted playsinline src="data:video/mp4;base64,{data}"></video></figure>'
        )

    def histograms(self, charts: Iterable[str]) -> None:
        """Add SVG charts made by `histogram_svg`, as many beside each other as there is room."""
        self._parts.append(f'<div class="charts">{"".join(charts)}</div>')

    def render(self) -> bytes:
        """The whole document, UTF-8."""
        title = html.escape(self.title)
        document = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE.read_text()}</style></head><body>{''.join(self._parts)}</body></html>\n"
        )
        return document.encode("utf-8", "replace")  # names of files may hold bytes that are no text


def histogram_svg(title: str, edges: Sequence[float], counts: Sequence[int], *, limit: float | None = None, limit_name: str = "") -> str:
    """A bar chart as inline SVG.

    Args:
        title: Caption.
        edges: n + 1 ascending bin edges.
        counts: n counts.
        limit: Draws a threshold at this value.
        limit_name: What the threshold is, e.g. `min 200`.
    """
    width, height, base = 240, 96, 76
    top = max(max(counts, default=0), 1)
    low, high = edges[0], edges[-1]
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{i * step + 0.5:.1f}" y="{base - 64 * n / top:.1f}" width="{step - 1:.1f}" height="{64 * n / top:.1f}"'
        ' fill="var(--bar)">'
        f"<title>{edges[i]:.4g} to {edges[i + 1]:.4g}: {n}</title></rect>"
        for i, n in enumerate(counts)
        if n
    )
    mark = ""
    if limit is not None and high > low and low <= limit <= high:
        x = (limit - low) / (high - low) * width
        mark = f'<line x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{base}" stroke="var(--bad)" stroke-dasharray="3 2"/>'
    middle = html.escape(limit_name)
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label={_attribute(title)}>'
        f'{bars}{mark}<line x1="0" y1="{base}" x2="{width}" y2="{base}" stroke="var(--rule)"/>'
        f'<g font-size="11" fill="var(--soft)"><text x="0" y="91">{low:.4g}</text>'
        f'<text x="{width / 2}" y="91" text-anchor="middle" fill="var(--bad)">{middle}</text>'
        f'<text x="{width}" y="91" text-anchor="end">{high:.4g}</text></g></svg></figure>'
    )


def _cell(cell: str | tuple[str, str]) -> str:
    if isinstance(cell, str):
        return html.escape(cell)
    text, remark = cell
    return f"{html.escape(text)} <small>{html.escape(remark)}</small>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _attribute(text: str) -> str:
    return f'"{html.escape(text, quote=True)}"'
