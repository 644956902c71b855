"""Results as data files, and the pages that are made of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import codes, command, gpu, loops, memory, overhead, sizes
from benchmarks.fidelity import values
from benchmarks.results import DATA, Section, Table, load_sections, save_section, text_of
from benchmarks.speed import curves, peers
from benchmarks.summary import index_page, summary_page
from benchmarks.timing import floor_headers

PLACE = "a machine, 2 cores, Linux, python 3"
TABLE = Table(
    "some", "Some, 1 GB", ("what", "x", "y, z"), (("a", 1, 0.25), ('b, "c"', None, "none: no\ttool"), ("d", 1234567, 1e-9)), "some.svg"
)


def section(title: str = "Two words", *tables: Table) -> Section:
    return Section(title, "python -m some", tables or (TABLE,), ("a note",), "2026-01-02", PLACE)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_section(section(), tmp_path)
    assert load_sections(tmp_path) == {"Two words": section()}
    lines = (tmp_path / "two-words-some.csv").read_text().splitlines()
    assert lines == ['what,x,"y, z"', "a,1,0.25", '"b, ""c""",,none: no\ttool', "d,1234567,1e-09"]


def test_floats_are_kept_with_six_digits_and_texts_as_they_are(tmp_path: Path) -> None:
    cells = (2 / 3, 123456.789, 0.1 + 0.2, "0.1..0.2", "1e", "1.2.3", "-", "v1")
    save_section(section("One", Table("", "One", tuple("abcdefgh"), (cells,))), tmp_path)
    (found,) = load_sections(tmp_path)["One"].tables
    assert found.rows == ((0.666667, 123457, 0.3, "0.1..0.2", "1e", "1.2.3", "-", "v1"),)
    assert (tmp_path / "one.csv").exists()


def test_a_section_takes_the_place_of_the_one_before_and_no_other(tmp_path: Path) -> None:
    other = section("Other", replace(TABLE, plot=""))
    save_section(section("One", TABLE, replace(TABLE, name="gone", plot="gone.svg")), tmp_path)
    save_section(other, tmp_path)
    for name in ("some.svg", "gone.svg"):
        (tmp_path / name).touch()
    save_section(section("One", TABLE), tmp_path)
    assert list(load_sections(tmp_path)) == ["One", "Other"] and load_sections(tmp_path)["Other"] == other
    assert {path.name for path in tmp_path.iterdir()} == {"one-some.csv", "other-some.csv", "sections.json", "some.svg"}


def test_cells_as_people_read_them() -> None:
    assert [text_of(cell) for cell in (None, 1234567, 0.123456, 1.0, "x")] == ["-", "1,234,567", "0.1235", "1", "x"]


def test_the_pages_are_what_the_data_says() -> None:
    sections = load_sections()
    assert command.PAGE.read_text("utf-8") == summary_page(sections)
    assert (DATA / "README.md").read_text("utf-8") == index_page(sections)


def test_pages_are_written_where_the_data_is(tmp_path: Path) -> None:
    save_section(section(), tmp_path)
    command.write_pages(tmp_path, tmp_path / "page.md")
    assert (
        "[Two words](results/README.md#two-words) | `python -m some` | 2026-01-02 | a machine, 2 cores, Linux |"
        in (tmp_path / "page.md").read_text()
    )
    index = (tmp_path / "README.md").read_text()
    assert (
        "| [two-words-some.csv](two-words-some.csv) | Some, 1 GB ([plot](some.svg)) | 3 | what; x; y, z |" in index and "- a note" in index
    )


def test_every_file_belongs_to_a_section() -> None:
    named = {"sections.json", "README.md"}
    for one in load_sections().values():
        named |= {name for table in one.tables for name in (one.file_of(table), table.plot) if name}
    assert {path.name for path in DATA.iterdir()} == named


@pytest.mark.parametrize("page", [command.PAGE, DATA / "README.md"], ids=lambda path: str(path.name))
def test_links_lead_somewhere_and_lines_are_short(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20
    for link in links:
        file, _, anchor = link.partition("#")
        assert (page.parent / file).is_file(), link
        assert not anchor or f"\n## {anchor.replace('-', ' ')}\n" in (page.parent / file).read_text().lower().replace(
            "start-up", "start up"
        ), link
    assert all(len(line) <= 160 for line in text.splitlines() if not line.startswith("|"))


HEADERS = {
    "sizes-packs.csv": sizes.PACK_HEADERS,
    "sizes-masks.csv": sizes.GAPS_HEADERS,
    "memory-huge.csv": memory.HEADERS,
    "memory-tensors.csv": memory.COUNT_HEADERS,
    "fidelity-errors.csv": values.ERROR_HEADERS,
    "fidelity-auto.csv": values.AUTO_HEADERS,
    "fidelity-embeddings.csv": values.MODEL_HEADERS,
    "speed-folders.csv": floor_headers("what"),
    "speed-settings.csv": floor_headers("drop", "values", "index", "what"),
    "speed-pairs.csv": floor_headers("pair", "MB", "what"),
    "peers-one.csv": peers.HEADERS,
    "cost-curves-size.csv": ("GB", *curves.HEADERS),
    "loops-stages.csv": loops.HEADERS,
    "loops-formulas.csv": loops.MERGE_HEADERS,
    "loops-choosing.csv": loops.CHOOSING_HEADERS,
    "codes-positions.csv": codes.INDEX_HEADERS,
    "codes-decoding.csv": codes.DECODE_HEADERS,
    "codes-values.csv": codes.VALUE_HEADERS,
    "overhead-commands.csv": overhead.HEADERS,
    "overhead-sizes.csv": overhead.SIZE_HEADERS,
    "gpu-packs.csv": gpu.PACK_HEADERS,
    "gpu-times.csv": gpu.HEADERS,
}


@pytest.mark.parametrize("file", HEADERS)
def test_columns_keep_their_places(file: str) -> None:
    """The files in the repository begin with the columns that the scripts write today; those that are new come last."""
    (found,) = [table for one in load_sections().values() for table in one.tables if one.file_of(table) == file]
    assert found.headers == HEADERS[file][: len(found.headers)]


def test_what_was_not_measured_is_left_out() -> None:
    assert "##" not in summary_page({})
    page = summary_page({"Speed": replace(section("Speed"), tables=())})
    assert "python -m some" in page and "##" not in page


def test_missed_targets_are_listed_and_others_are_counted() -> None:
    rows = (
        ("fast", "<= 1 x", 1.5, "FAIL", ""),
        ("small", "<= 2 MB", 1.0, "pass", ""),
        ("odd", "<= 1 s", None, "NOT MEASURED", ""),
        ("free", None, 3.0, None, ""),
    )
    page = summary_page({"Targets": section("Targets", Table("", "Targets", ("what", "target", "measured", "result", "how"), rows))})
    missed = page.split("## Targets missed\n")[1]
    assert "| fast | <= 1 x | 1.5 |\n| odd | <= 1 s | - |\n" in missed
    assert "small" not in missed and "free" not in missed and "1 others are reached: [targets.csv](results/targets.csv)." in missed


@pytest.mark.parametrize(("words", "kept"), [([], 1), (["--json"], 1), (["--quick"], 0), (["--quick", "--json"], 0)])
def test_a_quick_run_keeps_nothing(
    words: list[str], kept: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []
    saved: list[Section] = []
    monkeypatch.setattr(command, "keep", saved.append)

    def measure(quick: bool) -> Section:
        asked.append(quick)
        return section()

    assert command.main(measure, words) == 0
    assert asked == ["--quick" in words] and saved == [section()] * kept
    out = capsys.readouterr().out
    assert ('"title": "Two words"' in out) == ("--json" in words) and ("| what | x |" in out) != ("--json" in words)
