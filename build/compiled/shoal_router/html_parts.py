"""Small pieces of an HTML page: cells, labels, bars, tables, and numbers as people read them.

`text` is the only way in for what is not HTML: it escapes. Knows nothing of routers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape


def text(value: object) -> str:
    """Anything as text of the page."""
    return escape(str(value))


def cell(value: object, kind: str = "") -> str:
    """A table cell with text."""
    return markup(text(value), kind)


def markup(html: str, kind: str = "") -> str:
    """A table cell with what is HTML already."""
    return f'<td class="{kind}">{html}</td>' if kind else f"<td>{html}</td>"


def number(value: float) -> str:
    return cell(f"{value:,.0f}", "n")


def pill(value: object, kind: str = "") -> str:
    """A small coloured label."""
    return f'<span class="pill {kind}">{text(value)}</span>'


def bar(share: float) -> str:
    """A share as a bar: amber from 75 %, red from 95 %."""
    share = min(max(share, 0.0), 1.0)
    kind = "bad" if share >= 0.95 else "warn" if share >= 0.75 else ""
    return f'<span class="bar"><i class="{kind}" style="width:{share:.0%}"></i></span>'


def tile(name: str, value: object, note: str) -> str:
    """A figure with its name above and a note below."""
    name_html, note_html = (
        f'<span class="faint">{text(name)}</span>',
        f'<span class="faint">{text(note)}</span>',
    )
    return f'<div class="tile">{name_html}<b>{text(value)}</b>{note_html}</div>'


def table(columns: Sequence[str], rows: Iterable[str], empty: str = "") -> str:
    """A table of rows that are cells, or `<tr>` themselves; a column that begins with a space is one of numbers."""
    body = "".join(row if row.startswith("<tr") else f"<tr>{row}</tr>" for row in rows)
    if not body:
        return f'<div class="empty">{text(empty)}</div>'
    heads = "".join(
        f'<th class="{"n" if each.startswith(" ") else ""}">{text(each.strip())}</th>' for each in columns
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"


def percent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "–"
