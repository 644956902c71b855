"""Numbers that docstrings and documents repeat are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltapack.checkpoint import files
from deltapack.codecs.indices import DENSE, SPARSE
from deltapack.format.digest import CHUNK, TILE, TILES_PER_CHUNK
from deltapack.format.prologue import ALIGNMENT, PROLOGUE_BYTES
from deltapack.limits import DEFAULT_LIMITS, MIB
from deltapack.merging.advice import LARGEST_SUM_OF_WEIGHTS
from deltapack.merging.methods.table import ALIASES, METHODS
from deltapack.packing import kinship, roles, sampling
from deltapack.packing.recipe import USUAL_FIDELITY
from deltapack.sparsify.dare import HOPELESS, RISKY
from deltapack.sparsify.della import USUAL_EPSILON

ROOT = Path(__file__).resolve().parents[1]


def text_of(paths: list[Path]) -> str:
    """The words of files, with every run of white space one space, as lines may break anywhere."""
    return re.sub(r"\s+", " ", " ".join(path.read_text("utf-8") for path in sorted(paths)))


CODE = text_of(list((ROOT / "deltapack").rglob("*.py")))
DOCS = text_of([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
NUMBER = r"(\d[\d,.]*\d|\d)"

FACTS: list[tuple[str, str, tuple[float, ...]]] = [
    (CODE, rf"a bitmap where over {NUMBER} % are kept", (100 * DENSE,)),
    (CODE, rf"Between densities of {NUMBER} and {NUMBER}, gaps", (SPARSE, DENSE)),
    (CODE, rf"(?:epsilon;|probabilities:) {NUMBER} unless given", (USUAL_EPSILON,)),
    (CODE, rf"Rows longer than {NUMBER} elements", (CHUNK,)),
    (CODE, rf"within {NUMBER} a rate of 0.9 is safe, near {NUMBER} DARE fails", (RISKY, HOPELESS)),
    (CODE, rf"The first {NUMBER} bytes of a pack", (PROLOGUE_BYTES,)),
    (DOCS, rf"writes `bitmap` above a density of {NUMBER}", (DENSE,)),
    (DOCS, rf"[Bb]etween 0.12 and {NUMBER} Rice codes", (DENSE,)),
    (DOCS, rf"under 0.5 % up to {NUMBER}\.", (SPARSE,)),
    (DOCS, rf"in chunks of {NUMBER} elements, each made of {NUMBER} tiles of {NUMBER}", (CHUNK, TILES_PER_CHUNK, TILE)),
    (DOCS, rf"noise is at most {NUMBER} % of the noise that dropping", (100 * USUAL_FIDELITY,)),
    (DOCS, rf"the rule is e <= {NUMBER} p", (USUAL_FIDELITY,)),
    (DOCS, rf"above {NUMBER} it gets risky at a drop rate of 0.9, near {NUMBER} it does not work", (RISKY, HOPELESS)),
    (DOCS, rf"Above {NUMBER} % it warns, with the nearest names; above {NUMBER} % it", (100 * kinship.WARNED, 100 * kinship.REFUSED)),
    (DOCS, rf"more than {NUMBER} of the base's norm, and a cosine below {NUMBER}; or norms", (kinship._NORM, kinship._COSINE)),
    (DOCS, rf"one dimension \(norms, biases\), up to {NUMBER} elements", (roles._TINY,)),
    (DOCS, rf"More than {NUMBER} elements in one dimension", (roles._FLAT,)),
    (DOCS, rf"bf16 where int8 would lose more than {NUMBER} % of its difference", (100 * sampling._NOISE_FLOOR**0.5,)),
    (DOCS, rf"a sum of weights above {NUMBER}", (LARGEST_SUM_OF_WEIGHTS,)),
    (DOCS, rf"whole blocks of at least {NUMBER} KB", (files._LONG / 1024,)),
    (DOCS, rf"and {NUMBER} bytes tell a reader where everything is", (PROLOGUE_BYTES,)),
    (DOCS, rf"Blobs are aligned to {NUMBER} bytes", (ALIGNMENT,)),
    (DOCS, rf"scratch window of {NUMBER} elements", (float(re.findall(r"WINDOW = (\d+) ", CODE)[0]),)),
]


@pytest.mark.parametrize(("text", "pattern", "expected"), FACTS, ids=[pattern for _, pattern, _ in FACTS])
def test_a_number_is_that_of_the_code(text: str, pattern: str, expected: tuple[float, ...]) -> None:
    found = [match.groups() for match in re.finditer(pattern, text)]
    assert found, "the sentence has changed: change the pattern, too"
    for numbers in found:
        assert [float(number.replace(",", "")) for number in numbers] == pytest.approx(expected, rel=1e-12)


def test_the_table_of_roles_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "compressing.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, re.M))
    kept = {"drop": "with `--drop-rate` the share that it leaves", "difference": "all of the difference", "exact": "bit for bit"}
    assert list(rows) == list(roles.ROLES)
    assert all(kept[role.route] in rows[name] for name, role in roles.ROLES.items())
    assert "Roles to set are " + ", ".join(f"`{name}`" for name in roles.SETTABLE[:-1]) + f" and `{roles.SETTABLE[-1]}`." in page


def test_the_readme_counts_the_test_packs() -> None:
    (promised,) = re.findall(r"restores or refuses over (\d+) test packs alike", (ROOT / "README.md").read_text("utf-8"))
    assert int(promised) <= len(list((ROOT / "tests" / "vectors").glob("*.dpk"))) < int(promised) + 100


def test_numbers_of_compiled_loops() -> None:
    pytest.importorskip("numba")
    from deltapack.kernels.cpu import adding, blending, positions

    assert f"made for blocks of {adding._BLOCK_DENSE:,} elements in the first-level cache" in DOCS
    assert f"it takes blocks of {blending._BLOCK:,} elements whose sums stay in the cache" in DOCS
    assert f"a table over its high {positions._TABLE_BITS} bits" in DOCS


def test_the_histograms_have_as_many_classes_as_the_page_says() -> None:
    from deltapack.kernels.reference.choosing import MAGNITUDE

    classes = (MAGNITUDE >> 16) + 1
    assert f"the high {classes.bit_length() - 1} bits (a table of {classes:,})" in DOCS


def rows_of_methods() -> Iterator[tuple[str, int, dict[str, list[float]]]]:
    """Each method of the table in docs/merging.md, its place among the names of its row, and the parameters that the row states."""
    section = (ROOT / "docs" / "merging.md").read_text("utf-8").split("## Methods", 1)[1].split("\n## ", 1)[0]
    for names, parameters in re.findall(r"^\| (`[^|]*?) \| .* \|([^|]*)\|$", section, re.M):
        stated = {}
        for name, values in re.findall(r"`(\w+)` ((?:(?:\*\*)?(?:yes|no|[\d.e-]+)(?:\*\*)?(?:, (?=yes|no))?)+)", parameters):
            stated[name] = [float({"yes": "1", "no": "0"}.get(value, value)) for value in re.findall(r"[\w.-]+", values)]
        for place, name in enumerate(re.findall(r"`(\w+)`", names.split("(also")[0])):
            yield name, place, stated


def test_parameters_and_defaults_of_methods() -> None:
    seen = set()
    for name, place, stated in rows_of_methods():
        method = METHODS[name]["mergekit"]
        assert set(stated) == set(method.parameters), name
        usual: dict[str, Any] = {"weight": 1, "density": 1} | dict(method.defaults)
        assert {key: values[min(place, len(values) - 1)] for key, values in stated.items()} == {key: usual[key] for key in stated}, name
        seen.add(name)
    assert seen == set(METHODS)
    assert all(f"(also `{alias}`)" in DOCS for alias in ALIASES)


LIMITS = {
    "index, stored and decompressed": DEFAULT_LIMITS.index_bytes,
    "tensors": DEFAULT_LIMITS.tensors,
    "dimensions": DEFAULT_LIMITS.ndim,
    "elements of a tensor (the product taken without overflow)": DEFAULT_LIMITS.numel,
    "terms of a tensor": DEFAULT_LIMITS.terms,
    "factors of a term, decompressed": DEFAULT_LIMITS.factor_bytes,
    "side files": DEFAULT_LIMITS.side_files,
    "size of a side file": DEFAULT_LIMITS.side_file_bytes,
    "size of all side files": DEFAULT_LIMITS.side_files_bytes,
}


def test_limits_of_the_specification() -> None:
    text = (ROOT / "spec" / "04-reader-rules.md").read_text("utf-8").split("## 4.1 Limits", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+)(?:\^(\d+))?( MiB)? \|", text, re.M)
    sizes = {what: int(number.replace(",", "")) ** int(power or 1) * (MIB if unit else 1) for what, number, power, unit in rows}
    assert {what: sizes[what] for what in LIMITS} == LIMITS
    fixed = re.search(r"names of (\d+) bytes .*JSON depth of (\d+).*zstd window of\s+(\d+) MiB", text, re.S)
    assert fixed is not None
    expected = [DEFAULT_LIMITS.name_bytes, DEFAULT_LIMITS.json_depth, DEFAULT_LIMITS.window_bytes // MIB]
    assert [int(number) for number in fixed.groups()] == expected


def test_versions_of_python() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (least,) = re.findall(r'^requires-python = ">=([\d.]+)"', project, re.M)
    assert re.findall(r"Python ([\d.]+\d) or newer", DOCS) == [least]
    assert f'target-version = "py{least.replace(".", "")}"' in project
    assert f'"Programming Language :: Python :: {least}"' in project


def test_choices_that_the_command_line_repeats() -> None:
    """It does not import torch or numpy for them."""
    from deltapack.cli.commands import merge

    pytest.importorskip("torch")
    from deltapack.device.backends import BACKENDS
    from deltapack.merging.methods.table import SEMANTICS

    options = {parameter.name: parameter for parameter in merge.command.params}
    assert tuple(options["backend"].type.choices) == BACKENDS  # type: ignore[attr-defined]
    assert f"{', '.join(SEMANTICS[:-1])} or {SEMANTICS[-1]}" in (options["semantics"].help or "")
