"""spec/10-conformance.md and the grammar of spec/03-index.md name every vector, every field and every MUST."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest
from test_vectors import INVALID, ROOT, VECTORS

SPEC = ROOT / "spec"
BAD = sorted(name.removeprefix("v1-bad-").removesuffix(".dpk") for name in INVALID)
OK = sorted(
    [path.stem.removeprefix("v1-ok-") for path in VECTORS.glob("v1-ok-*.dpk")]
    + [path.stem.removeprefix("v1-") for path in VECTORS.glob("v1-several-*.json")]
)


def rows(page: str, section: str) -> list[list[str]]:
    """The cells of the rows of all tables of a section, without headings."""
    text = (SPEC / page).read_text("utf-8").split(f"## {section} ", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("| ") and line.endswith(" |")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def patterns(cell: str) -> list[str]:
    """The names in a cell."""
    return re.findall(r"`([^`]+)`", cell)


REFUSED = [(row[0], patterns(row[3])) for row in rows("10-conformance.md", "10.1") if re.match(r"R\d+\.\d+$", row[0])]
RESTORED = [(row[0], patterns(row[2])) for row in rows("10-conformance.md", "10.2") if patterns(row[2])]
MUSTS = [row for row in rows("10-conformance.md", "10.3") if re.match(r"\d\d$", row[0])]
FIELDS = [row for row in rows("03-index.md", "3.8") if len(row) == 6 and re.match("`", row[0])]
BY_KIND = [row for row in rows("03-index.md", "3.8") if len(row) == 9]


@pytest.mark.parametrize(("clause", "names"), REFUSED)
def test_clause_has_vectors(clause: str, names: list[str]) -> None:
    """Each name of a clause stands for a vector, of the clause's rule."""
    rule = clause.split(".", 1)[0]
    for name in names:
        assert name.startswith(f"{rule}-")
        assert any(fnmatchcase(vector, name) for vector in BAD), name


@pytest.mark.parametrize("vector", BAD)
def test_invalid_vector_has_one_clause(vector: str) -> None:
    """No vector is forgotten, and none stands for two clauses."""
    found = [clause for clause, names in REFUSED if any(fnmatchcase(vector, name) for name in names)]
    assert len(found) == 1, found


@pytest.mark.parametrize(("what", "names"), RESTORED)
def test_feature_has_vectors(what: str, names: list[str]) -> None:
    """Each name stands for a valid vector."""
    assert all(any(fnmatchcase(vector, name) for vector in OK) for name in names), what


@pytest.mark.parametrize("vector", OK)
def test_valid_vector_has_one_feature(vector: str) -> None:
    """No vector is forgotten."""
    assert sum(any(fnmatchcase(vector, name) for name in names) for _, names in RESTORED) == 1


def test_every_rule_has_clauses() -> None:
    """Clauses are numbered from 1, rule by rule, in the order of page 4."""
    rules = re.findall(r"^\| (R\d+) \|", (SPEC / "04-reader-rules.md").read_text("utf-8"), re.M)
    assert list(dict.fromkeys(clause.split(".")[0] for clause, _ in REFUSED)) == rules
    for rule in rules:
        numbers = [int(clause.split(".")[1]) for clause, _ in REFUSED if clause.startswith(f"{rule}.")]
        assert numbers == list(range(1, len(numbers) + 1))


def normative() -> dict[str, str]:
    """Text of each page that can require something, with lines joined."""
    pages = [page for page in sorted(SPEC.glob("0[2-9]*.md")) if "informative" not in page.read_text("utf-8")[:90]]
    return {page.name[:2]: " ".join(page.read_text("utf-8").split()) for page in [*pages, *sorted((SPEC / "codecs").glob("*.md"))]}


def test_every_must_is_held_to() -> None:
    """Each MUST of the normative pages stands in a quoted piece of its page, and each such piece in its page."""
    for page, text in normative().items():
        for _, sentence, _ in (row for row in MUSTS if row[0] == page):
            assert sentence in text, sentence
            text = text.replace(sentence, "")
        assert "MUST" not in text, (page, text[max(text.find("MUST") - 90, 0) :][:180])
    for page, sentence, held in MUSTS:
        assert page in normative() and "MUST" in sentence
        clauses = set(re.findall(r"\bR\d+\.\d+\b", held))
        assert clauses <= {clause for clause, _ in REFUSED}
        named = patterns(held)
        assert all((ROOT / name).is_file() if "/" in name else name in OK for name in named), named
        assert clauses or named or re.search(r"\b10\.[12]\b", held)


@pytest.mark.parametrize("row", FIELDS, ids=lambda row: f"{row[0]}.{row[1]}".replace("`", ""))
def test_field_has_vectors(row: list[str]) -> None:
    """Each field has a vector with a value of another type; one that must be there, a vector without it."""
    owner, field, there = row[0].strip("`"), row[1].strip("`"), row[3]
    referring = {"file": ("file", "referring"), "container": ("container", "head"), "source": ("source", "source-removed", "arranged")}
    objects = {"entry": KINDS, "term": (*TERMS, "term-rows", "term-factors"), **referring}.get(owner, (owner,))
    # The type of a field is tested in one kind of entry; a pack with `digests` is none of those of the other fields.
    assert any(f"R4-type-{place}-{field}-type" in BAD for place in (*objects, "digests"))
    for place in objects if there == "+" else ():
        if place in ("referring", "head", "term-rows", "term-factors"):  # the fields that it shares with others are tested there
            continue
        assert f"R4-lacks-{place}-{field}" in BAD
    if there.startswith("+ iff"):
        for index in (*TERMS, "term-stratified"):
            assert f"R4-{'lacks' if index[5:] in patterns(there) else 'extra'}-{index}-{field}" in BAD
    if there.startswith("with"):
        for place in WITH[field]:
            assert f"R4-lacks-{place}-{field}" in BAD
        assert f"R4-extra-term-all-{field}" in BAD


WITH = {"scale": ("term-tensor", "term-rows"), "lines": ("term-rows",), "rank": ("term-factors",), "bits": ("term-factors",)}
"""Fields of terms that come with another, and objects that have them."""
KINDS = ("delta", "unchanged", "grown", "shrunk", "stored", "exact", "removed", "alias")
TERMS = ("term-all", "term-bitmap", "term-gaps", "term-seeded")


def test_tables_are_found() -> None:
    """The patterns above find what they look for."""
    assert len(REFUSED) > 50 and len(RESTORED) > 10 and len(MUSTS) > 8
    assert len(FIELDS) == 65
    assert [cell.strip("`") for cell in BY_KIND[0]] == ["field", *KINDS]
    assert len(BY_KIND) == 13


@pytest.mark.parametrize("row", BY_KIND[1:], ids=lambda row: row[0].strip("`"))
def test_kinds_have_vectors(row: list[str]) -> None:
    """What must be there in a kind of entry has a vector without it, what may not be there a vector with it."""
    field = row[0].strip("`")
    for kind, mark in zip(KINDS, row[1:], strict=True):
        assert mark in "+o-"
        if mark != "o":
            assert f"R4-{'lacks' if mark == '+' else 'extra'}-{kind}-{field}" in BAD
