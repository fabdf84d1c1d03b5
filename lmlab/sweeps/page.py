"""One HTML page that holds all it shows: facts, pictures, tables sorted by a click.

It asks nothing of a network, and its content security policy lets it ask nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple


class Cell(NamedTuple):
    """What a table shows. value: what it is sorted by, a number or a text; "" comes last either way.

    kind: a class of STYLE.
    """

    text: str
    value: float | str
    kind: str = ""


class Table(NamedTuple):
    """ranked: the column by which the rows are in order, the best first; -1: none."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    ranked: int = -1


class Picture(NamedTuple):
    path: Path
    title: str
    note: str


def write(
    path: Path,
    title: str,
    facts: Mapping[str, str | Sequence[str]],
    parts: Sequence[Table | Picture],
) -> None:
    """Writes the page: `facts` beside their names, then tables and pictures in order."""
    told = "".join(f"<dt>{escape(name)}</dt><dd>{_lines(value)}</dd>\n" for name, value in facts.items())
    shown = "".join(_table(part) if isinstance(part, Table) else _picture(part) for part in parts)
    page = PAGE.format(title=escape(title), style=STYLE, facts=told, parts=shown, script=SCRIPT)
    path.write_text(page, encoding="utf-8")


def _lines(value: str | Sequence[str]) -> str:
    return "<br>".join(map(escape, [value] if isinstance(value, str) else value))


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return (
        f"<section>\n<h2>{escape(picture.title)}</h2>\n<p>{escape(picture.note)}</p>\n"
        f'<div class="wide"><img alt="{escape(picture.title)}: {escape(picture.note)}"'
        f' src="data:image/png;base64,{data}"></div>\n</section>\n'
    )


def _table(table: Table) -> str:
    heads = "".join(_head(name, i == table.ranked, table.rows, i) for i, name in enumerate(table.columns))
    rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>\n" for row in table.rows)
    return (
        f"<section>\n<h2>{escape(table.title)}</h2>\n<p>{escape(table.note)}</p>\n"
        f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n'
        "</section>\n"
    )


def _head(name: str, ranked: bool, rows: Sequence[Sequence[Cell]], column: int) -> str:
    """A column of numbers has its head above them, at the right."""
    kinds = " class=number" * any(_is_number(row[column]) for row in rows)
    return f'<th scope="col"{kinds}{" aria-sort=ascending" * ranked}>{escape(name)}</th>'


def _cell(cell: Cell) -> str:
    kinds = f"{'number' * _is_number(cell)} {cell.kind}".strip()
    told = f' class="{kinds}"' if kinds else ""
    value = repr(cell.value) if _is_number(cell) else cell.value
    text = escape(cell.text).replace(",", ",<wbr>")  # where a name may be broken
    return f'<td{told} data-value="{escape(value)}">{text}</td>'


def _is_number(cell: Cell) -> bool:
    return isinstance(cell.value, int | float)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<dl>
{facts}</dl>
{parts}</main>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light; --line: #d9dde3; --soft: #5b6470; --blue: #0b5fa5; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f6f8; color: #1b1f24; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0; }
section, dl { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; margin: 0 0 1rem; }
section p { margin: .1rem 0 .8rem; color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
tbody tr:hover { background: #f2f6fb; }
.number { text-align: right; }
th { font-weight: 600; border-bottom-width: 2px; }
th button { all: unset; cursor: pointer; }
th button:hover, th button:focus-visible { color: var(--blue); text-decoration: underline; }
th[aria-sort] button::after { content: " \\25B2"; color: var(--blue); font-size: .7em; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.line { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
.done { color: #13713b; }
.diverged, .failed { color: #b3261e; font-weight: 600; }
.running, .cut, .new { color: var(--soft); }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  main { padding: 1rem .5rem; }
  img { max-width: none; width: 40rem; }
}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row => row.cells[column].dataset.value;
      body.append(...[...body.rows].sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === "" || y === "") return (x === "") - (y === "");  // what is not known comes last
        return (x - y || x.localeCompare(y)) * (down ? -1 : 1);
      }));
    };
  });
}
"""
