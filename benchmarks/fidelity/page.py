"""The tables of docs/fidelity.md, made of the study's data files alone: what is kept at each size, and every place where it fails."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.fidelity.report import JUDGED
from benchmarks.fidelity.study import FORMER, SUBJECTS
from benchmarks.results import Cell, Section, load_sections, text_of
from benchmarks.summary import beside, find, records

__all__ = ["PAGE", "page", "write_page"]

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
TITLE = "Fidelity study"
RATE = 0.9
"""Drop rate of the packs that are shown beside budgets."""
Row = Mapping[str, Cell]
Sections = Mapping[str, Section]


def page(text: str, sections: Sections) -> str:
    """Return the page with what stands between its marks made anew.

    Args:
        text: The page.
        sections: All results.
    """
    for mark, lines in (("figures", _figures(sections)), ("failures", _failures(sections)), ("missing", _missing(sections))):
        begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
        made = "".join((begin, *lines, end)).replace("\\", r"\\")
        text, found = re.subn(f"{begin}.*?{end}", made, text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"{PAGE.name}: expected the mark {mark} once, found it {found} times")
    return text


def write_page() -> None:
    """Write the page anew, as the data files are."""
    PAGE.write_text(page(PAGE.read_text("utf-8"), load_sections()), "utf-8")


def _rows(sections: Sections, table: str) -> list[Row]:
    found = find(sections, TITLE, table)
    return [] if found is None else list(records(found))


def _figures(sections: Sections) -> Iterator[str]:
    """Yield the lines of the main table."""
    sizes = [f"{bits:g}" for bits in JUDGED]
    headers = ["model", "measure", *(f"deltapack {bits}" for bits in sizes), *(f"best other {bits}" for bits in sizes)]
    yield _line(*headers, f"DARE {RATE:g}: bits", "value")
    yield "|" + "---|" * (len(headers) + 2) + "\n"
    cells = {(row["model"], row["measure"], row["asked"]): row for row in _rows(sections, "beside")}
    dare = {row["model"]: row for row in _rows(sections, "all") if row["method"] == FORMER and row["asked"] == RATE}
    for model, measure in dict.fromkeys((model, measure) for model, measure, _ in cells):
        at = [cells.get((model, measure, bits), {}) for bits in JUDGED]
        former: Row = dare.get(model, {})
        ours, others = [_number(row.get("deltapack")) for row in at], map(_other, at)
        column = "KL" if measure == "kl" else str(measure)
        yield _line(model, column, *ours, *others, _number(former.get("bits/weight")), _number(former.get(column)))


def _failures(sections: Sections) -> Iterator[str]:
    """Yield the lines of the table of all that did not hold."""
    yield _line("model", "what, at bits a weight", "deltapack", "others, or before")
    yield "|---|---|---|---|\n"
    for row in _rows(sections, "beside"):
        if row["held"] == "no":
            name = "KL" if row["measure"] == "kl" else row["measure"]
            yield _line(row["model"], f"{name} at {row['asked']:g}", row["deltapack"], beside(row))
    for row in _rows(sections, "defaults"):
        if row["held"] == "no":
            now, before = _default(row, "default", "now"), _default(row, "former default", "before")
            yield _line(row["model"], f"the default, {row['x smaller']:.2f}x smaller", now, f"{before} (drop rate {RATE:g})")
    for row in _rows(sections, "equal"):
        times = row["x smaller"]
        if isinstance(times, int | float) and times < 1:
            name = "KL" if row["measure"] == "kl" else row["measure"]
            rate = row["DARE's drop rate"]
            bits = f"{_number(row['deltapack bits/weight'])} bits", f"{_number(row['DARE bits/weight'])} bits"
            yield _line(row["model"], f"bits for the {name} of a drop rate of {rate:g}", *bits)


def _default(row: Row, which: str, when: str) -> str:
    """Return what a default takes and gives."""
    measures = [f"{name} {_number(row[f'{name} {when}'])}" for name in ("KL", "retention") if row[f"{name} {when}"] is not None]
    return ", ".join([f"{_number(row[f'{which} bits/weight'])} bits", *measures])


def _missing(sections: Sections) -> Iterator[str]:
    """Yield the fine-tunes that were not measured, and what was measured with how many seeds."""
    rows = _rows(sections, "beside")
    seeds: dict[int, list[str]] = {}
    for model in SUBJECTS:
        found = [row["seeds"] for row in rows if row["model"] == model]
        seeds.setdefault(min((int(count) for count in found if isinstance(count, int)), default=0), []).append(model)
    for count in sorted(seeds):
        what = "not measured" if not count else f"budgets measured with {count} seed{'s' * (count > 1)}"
        yield f"- {what}: {', '.join(seeds[count])}\n"


def _other(row: Row) -> str:
    """Return the best of others of a size, and what is better with fewer bits."""
    fewer = "" if row.get("these bits") is None else f" ({_number(row['better with fewer bits'])} with {_number(row['these bits'])} bits)"
    return _number(row.get("best other")) + fewer


def _line(*cells: Cell) -> str:
    return "| " + " | ".join(text_of(cell) for cell in cells) + " |\n"


def _number(value: Cell) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.3f}"
