"""The pieces of a self-contained HTML page. Every function here escapes what it is given, unless it says markup."""

import html
import json
from pathlib import Path
from typing import Any


def page(title: str, body: str, what: str = "HGRN2 training run") -> str:
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}: {text(what)}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>{body}</section>" if body else ""


def facts(pairs: list[tuple[str, str]]) -> str:
    cells = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{cells}</dl>' if pairs else ""


def details(title: str, body: str, open_: bool = False) -> str:
    return f"<details{' open' if open_ else ''}><summary>{text(title)}</summary>{body}</details>"


def table(head: list[str], rows: list[list[str]], numeric: bool = False) -> str:
    mark = ' class="n"' if numeric else ""
    top = "<tr>" + "".join(f"<th{mark}>{text(name)}</th>" for name in head) + "</tr>" if head else ""
    body = "".join("<tr>" + "".join(f"<td{mark}>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}{body}</table></div>'


def as_json(value: Any) -> str:
    return f"<pre>{text(json.dumps(value, indent=2, ensure_ascii=False, default=str))}</pre>"


def paragraph(markup: str, kind: str) -> str:
    return f'<p class="{kind}">{markup}</p>'


def plain(value: Any) -> str:
    """A plain value for reading: thousands separated, yes and no, a dash for nothing."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def text(value: str) -> str:
    """Escaped for HTML; characters that a page may not hold, which byte-level models do write, become visible ones."""
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in value.replace("\r\n", "\n"))
    return html.escape(shown.encode("utf-8", errors="replace").decode("utf-8").replace("\x7f", "␡"), quote=True)
