"""The pages about all results: one of the main figures, and an index of the data files. Both are functions of the data alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.results import Cell, Section, Table

__all__ = ["AIMS", "CHAPTERS", "beside", "find", "index_page", "records", "summary_page"]

Row = Mapping[str, Cell]
Sections = Mapping[str, Section]
WIDTH = 160
"""Of a line of prose."""
SUMMARY_HEAD = """# Measured

Written by the scripts in this folder (`python -m benchmarks`, or one of them, such as `python -m benchmarks.sizes`). These are the main
figures; [results/](results/README.md) has all of them, a CSV file for each table, and says how they were taken. A table's link leads to all
its rows and columns. Sizes and errors repeat exactly; seconds and memory vary a little.
"""
INDEX_HEAD = """# All results

A CSV file for each table, written by the scripts in the folder above. `sections.json` has what belongs to them: commands, days, machines,
notes and captions. [The summary](../RESULTS.md) and this page are made of these files.

The files are UTF-8, with commas, quotes as in RFC 4180, and `\\n`. The first line names the columns, in the order that is listed below. It
stays: a new column comes last. Numbers have a point, no separators, and at most 6 significant digits. An empty cell was not measured or
does not apply; a text that begins with `none:` says why there is no figure. GB and MB are 1e9 and 1e6 bytes, b/w is bits per weight,
`x WHAT` is the ratio to WHAT, `over %` is percent above.
"""


@dataclass(frozen=True)
class View:
    """What the summary shows of a table.

    Attributes:
        section: Title of the section.
        table: Name of the table in it.
        columns: Those that are shown, in this order.
        keep: Which rows are shown.
    """

    section: str
    table: str
    columns: tuple[str, ...]
    keep: Callable[[Row], bool] = lambda row: True

    def markdown(self, sections: Sections) -> str:
        """Return the table with its caption as a link to the file; nothing if it was not measured."""
        found = find(sections, self.section, self.table)
        if found is None:
            return ""
        rows = tuple(tuple(row[column] for column in self.columns) for row in records(found) if self.keep(row))
        caption = f"[{found.caption}](results/{sections[self.section].file_of(found)})"
        return Table(found.name, caption, self.columns, rows).markdown()


@dataclass(frozen=True)
class Chapter:
    """Views under one heading, and what a reader must know of them."""

    heading: str
    text: str
    views: tuple[View, ...]


def find(sections: Sections, title: str, name: str) -> Table | None:
    """Return a table; none if it was not measured."""
    tables = sections[title].tables if title in sections else ()
    return next((table for table in tables if table.name == name), None)


def records(table: Table) -> Iterator[Row]:
    """Yield the rows of a table by column."""
    return (dict(zip(table.headers, row, strict=True)) for row in table.rows)


def _has(column: str, *texts: str) -> Callable[[Row], bool]:
    """Rows with one of some texts in a column."""
    return lambda row: any(text in str(row[column]) for text in texts)


def _main_codecs(row: Row) -> bool:
    return row["values"] in ("base alone", "auto", "sign")


def _main_sizes(row: Row) -> bool:
    return row["values"] == "auto" or (row["drop"], row["values"], row["index"]) == (0.9, "int4", "gaps")


def _best_patches(row: Row) -> bool:
    return "patch-from" in str(row["peer"]) and row["ratio"] is not None


def _loaded(row: Row) -> bool:
    return str(row["what"]).startswith("copy") or "streams in memory" in str(row["what"])


def _many_tensors(row: Row) -> bool:
    return isinstance(row["tensors"], int) and row["tensors"] > 1000


def _sized(row: Row) -> bool:
    return row["share"] is not None


EXACT = ("pair", "type", "MB", "changed %", "pack", "over %", "best other tool", "its share", "pack is x smaller", "bounds held")
TIMES = ("what", "seconds", "GB/s", "peak RSS MB")
TOOLS = ("task", "tool", "seconds", "peak RSS MB", "output MB", "deltapack is x faster")
DEFAULTS = (
    "model",
    "former default bits/weight",
    "default bits/weight",
    "x smaller",
    "KL before",
    "KL now",
    "retention before",
    "retention now",
)
EQUAL = ("model", "measure", "value", "DARE bits/weight", "deltapack bits/weight", "x smaller")
BESIDE = ("model", "bits/weight", "measure", "deltapack", "best other", "of", "better with fewer bits", "these bits", "held")
CHAPTERS = (
    Chapter(
        "Sizes and fidelity",
        "`synthetic` is a made-up Llama of 156 M weights in bf16; A, B1 and B2 are real pairs in f32 (`benchmarks/assets.py`). zstd is "
        "lossless, packs are not.",
        (
            View("Sizes", "packs", ("pair", "drop", "values", "index", "bits/weight", "pack bytes", "ratio"), _main_sizes),
            View("Sizes", "zstd", ("pair", "peer", "bytes", "ratio", "seconds"), _best_patches),
            View("Fidelity", "embeddings", ("drop", "values", "mean cosine", "lowest", "bits/weight"), _main_codecs),
        ),
    ),
    Chapter(
        "How small a fine-tune can be",
        "Budgets beside every other data-free method at equal bits (0.95 to 1.02 of those asked for), on fine-tunes that are made for it, "
        "and on real pairs. Held: no worse than any other method at so many bits or fewer, within the spread of the seeds. "
        "[docs/fidelity.md](../docs/fidelity.md) says what all this is.",
        (
            View("Fidelity study", "defaults", DEFAULTS),
            View(
                "Fidelity study",
                "equal",
                EQUAL,
                lambda row: row["DARE's drop rate"] == 0.9 and row["measure"] in ("kl", "retention", "cosine"),
            ),
            View("Fidelity study", "beside", BESIDE, lambda row: row["measure"] in ("kl", "exact match", "cosine")),
            View(
                "Fidelity merges",
                "merges",
                ("merged", "packs", "bits/weight of all packs", "retention, perl", "retention, bible", "exact match"),
            ),
        ),
    ),
    Chapter(
        "Exact packs",
        "Nothing is lost. A, B1 and B2 as they are and rounded, pairs and steps that were trained for it (`benchmarks/exact/training.py`). "
        "Shares of the bytes of the fine-tune; over: of the entropy. [docs/exact.md](../docs/exact.md) says what all this is.",
        (
            View("Exact pairs", "pairs", EXACT),
            View("Exact pairs", "files", ("pair", "files", "MB", "pack bytes", "share", "weight files, same sha256")),
            View("Exact steps", "step-tools", ("run", "changed %", "tool", "share", "x smaller than whole", "x pack"), _sized),
            View("Exact speed", "speed", ("pair", "type", "tool", "encode MB/s", "decode MB/s", "encode: x copy", "decode: x copy")),
        ),
    ),
    Chapter(
        "Speed beside the floors of the machine",
        "Made-up Llamas in bf16, files in the page cache. Rows that end in `command` are fresh processes from start to end, the others "
        "calls in a warm one. `x WHAT`: the time by that of WHAT in the same round, median. Peak RSS: of a fresh process that makes the "
        "one call; in memory, beside the weights.",
        (
            View("Speed", "folders", (*TIMES, "x cp", "x cp + sync", "x read files"), _has("what", "2 workers", "cp", "inspect")),
            View("Speed", "compress", (*TIMES, "x read files")),
            View("Speed", "memory", (*TIMES, *(f"x copy memory, {threads}" for threads in ("1 thread", "2 threads"))), _loaded),
            View("Start-up", "first-runs", ("command", "first run s", "second run s", "compiling s")),
            View("Overhead", "commands", ("command", "numpy, processor s", "numba, processor s")),
        ),
    ),
    Chapter(
        "Speed beside other tools",
        "`deltapack is x faster`: as a command, which syncs what it writes; the others do not. zstd, xdelta3 and zipnn are lossless. "
        "mergekit merges full fine-tunes.",
        (
            View("Peers", "one", TOOLS),
            View("Peers", "merges", tuple(column for column in TOOLS if column != "output MB")),
            View("Speed", "methods", ("what", "seconds", "peak RSS MB", "x cp + sync"), _has("what", " of 8")),
        ),
    ),
    Chapter(
        "GPU",
        "Synthetic decoders in bf16 on one GPU; drop rate 0.9, int4, seeded. `x copy`: the time by that of copying all weights to another "
        "place on the GPU. [docs/performance.md](../docs/performance.md) says what the time is.",
        (
            View("GPU", "times", ("model", "what", "ms", "x copy")),
            View("GPU", "packs", ("model", "G weights", "MB on the GPU", "bits/weight")),
        ),
    ),
    Chapter(
        "Memory",
        "Peak of a fresh process that makes the one call with 2 workers, libraries included; drop rate 0.9, int4, seeded; merges are of "
        "two packs.",
        (
            View("Memory", "huge", ("checkpoint", "verb", "peak RSS MB", "seconds"), lambda row: row["workers"] == 2),
            View("Memory", "tensors", ("tensors", "verb", "peak RSS MB", "seconds"), _many_tensors),
        ),
    ),
)
"""The summary but for its targets."""


def _exact_aim(row: Row) -> str:
    most = 10 if isinstance(row["changed %"], int | float) and row["changed %"] < 3 else 5
    return f"<= {most}, and smaller than every tool"


def beside(row: Row) -> Cell:
    """What others reach: with as many bits, and with fewer where that says more."""
    near = [] if row["best other"] is None else [f"{row['best other']:.4g} ({row['of']})"]
    fewer = [] if row["these bits"] is None else [f"{row['better with fewer bits']:.4g} ({row['of these']}, {row['these bits']:.3g} bits)"]
    return "; ".join(near + fewer)


def _at(row: Row) -> str:
    return f"{row['measure']} of {row['model']} at {row['bits/weight']:.3g} bits"


@dataclass(frozen=True)
class Aim:
    """A table whose rows say whether something was reached.

    Attributes:
        section: Title of the section.
        table: Name of the table in it.
        verdict: The column that says it.
        row: What the aim is of, the aim, and the measured value, from a row of the table.
    """

    section: str
    table: str
    verdict: str
    row: Callable[[Row], tuple[Cell, ...]]


AIMS = (
    Aim("Targets", "", "result", lambda row: (row["what"], row["target"], row["measured"])),
    Aim(
        "Sizes", "bounds", "result",
        lambda row: (f"bits/weight of pair {row['pair']}, drop {row['drop']}, int4, seeded", f"<= {row['at most']}", row["bits/weight"]),
    ),
    Aim(
        "Sizes", "masks", "gaps",
        lambda row: (f"stored gaps over the entropy, density {row['density']}", f"<= {row['at most %']} %", row["gaps over %"]),
    ),
    Aim(
        "Memory", "huge", "below 512 MB",
        lambda row: (f"peak RSS, {row['verb']} of one huge tensor, {row['workers']} workers", "<= 512 MB", row["peak RSS MB"]),
    ),
    Aim(
        "Exact pairs", "pairs", "bounds held",
        lambda row: (f"exact pack of {row['pair']} as {row['type']}: percent over the entropy", _exact_aim(row), row["over %"]),
    ),
    Aim(
        "Fidelity study", "beside", "held",
        lambda row: (_at(row), beside(row), row["deltapack"]),
    ),
    Aim(
        "Fidelity study", "defaults", "held",
        lambda row: (f"default of {row['model']}: 1.5x smaller, no worse", row["former default bits/weight"], row["default bits/weight"]),
    ),
    Aim("Start-up", "commands", "at most 0.3 s", lambda row: (row["command"], "<= 0.3 s", row["seconds"])),
    Aim(
        "Overhead", "commands", "at most 0.4 s",
        lambda row: (f"processor time of {row['command']}, tiny model", "<= 0.4 s", row["numpy, processor s"]),
    ),
)  # fmt: skip


def summary_page(sections: Sections) -> str:
    """Return the summary as Markdown."""
    parts = [SUMMARY_HEAD, *_measured(sections)]
    for chapter in CHAPTERS:
        tables = [text for view in chapter.views if (text := view.markdown(sections))]
        if tables:
            parts += [f"## {chapter.heading}\n", _wrapped(chapter.text), *tables]
    return "\n".join([*parts, *_missed(sections)])


def index_page(sections: Sections) -> str:
    """Return the index of the data files as Markdown."""
    parts = [INDEX_HEAD]
    for section in sections.values():
        parts.append(f"## {section.title}\n\n`{section.command}`, {section.day}  \n{_wrapped(section.place)}")
        rows = ["| file | table | rows | columns |", "|---|---|---|---|"]
        for table in section.tables:
            file, plot = section.file_of(table), f" ([plot]({table.plot}))" if table.plot else ""
            rows.append(f"| [{file}]({file}) | {table.caption}{plot} | {len(table.rows)} | {'; '.join(table.headers)} |")
        parts += ["\n".join(rows) + "\n", "".join(_wrapped(note, "- ", "  ") for note in section.notes)]
    return "\n".join(part for part in parts if part)


def _wrapped(text: str, first: str = "", later: str = "") -> str:
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _measured(sections: Sections) -> Iterator[str]:
    """What was measured, when and where."""
    rows = ["| what | by | when | where |", "|---|---|---|---|"]
    runs: dict[tuple[str, str, str], list[str]] = {}
    for section in sections.values():
        run = f"`{section.command}`", section.day, section.place.partition(", python")[0]
        runs.setdefault(run, []).append(f"[{section.title}](results/README.md#{section.key})")
    rows += [f"| {', '.join(links)} | {' | '.join(run)} |" for run, links in runs.items()]
    yield "\n".join(rows) + "\n"
    plots = [f"[{table.caption}](results/{table.plot})" for section in sections.values() for table in section.tables if table.plot]
    if plots:
        yield _wrapped(f"Plots: {', '.join(plots)}.")


def _missed(sections: Sections) -> Iterator[str]:
    """The aims that are missed, and how many are not."""
    rows: list[tuple[Cell, ...]] = []
    reached = 0
    for aim in AIMS:
        table = find(sections, aim.section, aim.table)
        for row in records(table) if table is not None else ():
            if row[aim.verdict] in ("pass", "yes"):
                reached += 1
            elif row[aim.verdict] is not None:
                rows.append(aim.row(row))
    if rows or reached:
        yield Table("", "Targets missed", ("what", "target", "measured"), tuple(rows)).markdown(level=2)
        links = (f"[{file}](results/{file})" for file in _aim_files(sections))
        yield _wrapped(f"{reached} others are reached: {', '.join(links)}.")


def _aim_files(sections: Sections) -> Iterator[str]:
    for aim in AIMS:
        table = find(sections, aim.section, aim.table)
        if table is not None:
            yield sections[aim.section].file_of(table)
