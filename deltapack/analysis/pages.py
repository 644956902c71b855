"""One HTML file that holds all it shows: no script, no font, no image, nothing from a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from deltapack._version import __version__
from deltapack.analysis.charts import escape
from deltapack.errors import OutputError
from deltapack.format.atomic import atomic_file, check_new_file, writing

__all__ = ["Cell", "check_page", "fields", "page", "paragraphs", "section", "table", "write_page"]

_MARK = f"<!doctype html>\n<!-- made by deltapack {__version__} -->\n"
_OURS = b"<!doctype html>\n<!-- made by deltapack "
# Series differ also for eyes that lack a kind of cone, and each stands out from the paper: tests/analysis/test_pages.py measures both.
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--dim:#5b6470;--paper:#fff;--rule:#d8dce2;
--c0:#2563b8;--c1:#831200;--c2:#00a95f;--c3:#7629e8;--c4:#879500;--c5:#c65f9a}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ec;--dim:#9aa3b0;--paper:#15181d;--rule:#343a43;
--c0:#6ea8f0;--c1:#de5532;--c2:#bbff9b;--c3:#815884;--c4:#fff153;--c5:#e49eaf}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px 20px 60px;max-width:1080px;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;
overflow-wrap:anywhere}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 6px}p{max-width:75ch;margin:6px 0}.dim{color:var(--dim)}
.say{font-size:18px;border-left:4px solid var(--c0);padding:8px 14px;margin:16px 0}.warn{border-left:4px solid var(--c1);padding:2px 12px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:10px 0}dt{color:var(--dim)}dd{margin:0}
.wide{overflow-x:auto;margin-top:12px}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:3px 10px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child,td:first-child,.last td:last-child,.last th:last-child{text-align:left;white-space:normal}
td:first-child{min-width:min(20em,40vw)}thead th{color:var(--dim);font-weight:600}
svg{display:block;max-width:100%;height:auto}.grid{stroke:var(--rule)}.tick{fill:var(--dim);font-size:11px}.name{fill:var(--ink);font-size:12px}
text{font-family:system-ui,sans-serif}.bar,.cell{fill:var(--c0)}.line{fill:none;stroke-width:2}
.c0{stroke:var(--c0);fill:var(--c0)}.c1{stroke:var(--c1);fill:var(--c1)}.c2{stroke:var(--c2);fill:var(--c2)}.c3{stroke:var(--c3);fill:var(--c3)}
.c4{stroke:var(--c4);fill:var(--c4)}.c5{stroke:var(--c5);fill:var(--c5)}path.line{fill:none}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;margin:4px 0 0;font-size:13px}
.key{display:inline-block;width:11px;height:11px;border-radius:6px;margin-right:6px}
i.c0{background:var(--c0)}i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}i.c4{background:var(--c4)}
i.c5{background:var(--c5)}
"""

Cell = str


def page(title: str, parts: Iterable[str]) -> str:
    """Return a page: a title and what is below it, which is HTML already."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
    body = "\n".join(part for part in parts if part)
    end = f'<p class="dim">deltapack {escape(__version__)}</p>'
    style = f"<style>{_STYLE}</style>"
    top = f'{_MARK}<html lang="en"><head>{head}<title>{escape(title)}</title>{style}</head>'
    return f"{top}\n<body><h1>{escape(title)}</h1>\n{body}\n{end}</body></html>\n"


def section(title: str, text: str, *content: str) -> str:
    """Return a heading, a sentence that says how to read what follows, and that; nothing where there is none."""
    shown = "\n".join(part for part in content if part)
    return f'<h2>{escape(title)}</h2><p class="dim">{escape(text)}</p>\n{shown}' if shown else ""


def fields(rows: Sequence[tuple[str, str]]) -> str:
    """Return labels and what belongs to them."""
    return "<dl>" + "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows) + "</dl>"


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], *, last: bool = False) -> str:
    """Return a table whose first column is text, and with `last` the last one, too; none where it has no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = "wide last" if last else "wide"
    return f'<div class="{kind}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def paragraphs(sentences: Iterable[str], kind: str) -> str:
    """Return sentences, a paragraph each: `"say"`, `"warn"` or `"dim"`."""
    return "\n".join(f'<p class="{kind}">{escape(sentence)}</p>' for sentence in sentences)


def check_page(path: Path, *, force: bool) -> None:
    """Refuse a page that cannot be written, or that would take the place of something else than a page of ours.

    Raises:
        OutputError: It exists and `force` is false or it is something else, or its folder is missing.
    """
    check_new_file(path, force=force)
    if not path.is_file():
        return
    with writing(path), open(path, "rb") as file:
        head = file.read(len(_OURS))
    if head != _OURS:
        raise OutputError("the output exists and is no page of deltapack", path=path, hint="Remove it yourself, or choose another name.")


def write_page(content: str, path: Path, *, force: bool) -> None:
    """Write a page.

    Raises:
        OutputError: As `check_page`, or the system refuses to write.
    """
    check_page(path, force=force)
    with atomic_file(path, force=force) as file:
        file.write(content.encode("utf-8", "backslashreplace"))
