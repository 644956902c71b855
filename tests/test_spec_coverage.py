"""Every rule, codec, entry kind and element type of the specification has a vector that names or uses it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.builders import reference_decoder

from deltapack.dtypes import BY_NAME
from deltapack.format import codecs

ROOT = Path(__file__).resolve().parent.parent
SPEC, VECTORS = ROOT / "spec", ROOT / "tests" / "vectors"
NAMES = [path.name for path in VECTORS.glob("v1-*.dpk")]


def first_column(page: str, section: str) -> list[str]:
    """The `names` in the first column of the tables of a section, which ends at the next heading."""
    text = (SPEC / page).read_text("utf-8").split(section, 1)[1].split("\n#", 1)[0]
    return [name for row in re.findall(r"^\| (`[^|]*) \|", text, re.M) for name in re.findall(r"`([^`]+)`", row)]


RULES = re.findall(r"^\| (R\d+) \|", (SPEC / "04-reader-rules.md").read_text("utf-8"), re.M)
INDEX_CODECS = re.findall(r"^## `(\w+)`", (SPEC / "codecs" / "index.md").read_text("utf-8"), re.M)
VALUE_CODECS = first_column("codecs/values.md", "# Value codecs")
KINDS = ["delta", "unchanged", "grown", "shrunk", "stored", "exact", "removed", "alias"]


def test_lists_are_what_the_pages_say() -> None:
    """The patterns above still find what they look for."""
    assert [f"R{i}" for i in range(1, 14)] == RULES
    assert list(codecs.INDEX_CODECS) == INDEX_CODECS
    assert list(codecs.VALUE_CODECS) == VALUE_CODECS
    assert first_column("03-index.md", "| kind | meaning | common |") == KINDS


@pytest.mark.parametrize("rule", RULES)
def test_rule_has_an_invalid_vector(rule: str) -> None:
    """Each rule has a file that breaks it."""
    assert any(name.startswith(f"v1-bad-{rule}-") for name in NAMES)


@pytest.mark.parametrize(
    "feature",
    [
        *(f"index-{codec}" for codec in INDEX_CODECS),
        *(f"values-{codec}" for codec in VALUE_CODECS),
        *(f"kind-{k}" for k in KINDS),
    ],
)
def test_feature_has_a_valid_vector(feature: str) -> None:
    """Each codec and each entry kind has a file that uses it."""
    assert f"v1-ok-{feature}.dpk" in NAMES


def pairs_of_kinds() -> dict[tuple[str, str], str]:
    """The table of section 9.3: what two packs give that say these things of a tensor."""
    section = (SPEC / "09-weights-and-several-packs.md").read_text("utf-8").split("\n## 9.3", 1)[1].split("\n## ", 1)[0]
    head, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", section, re.M)]
    return {(row[0], second): cell for row in rows for second, cell in zip(head[1:], row[1:], strict=True)}


def test_every_pair_of_kinds_has_a_vector() -> None:
    """Two packs of each pair are in a case, which is an error where the table says conflict and no pack is preferred."""
    cases = json.loads((VECTORS / "v1-several-pairs.json").read_text("utf-8"))["cases"]
    pairs = pairs_of_kinds()
    assert len(pairs) == 64 and {kind for pair in pairs for kind in pair} == {*KINDS, "blend", "whole"} - {"stored", "exact"}
    for (first, second), becomes in pairs.items():
        case = cases[f"{first}-{second}"]
        assert case["packs"] == [f"v1-several-pairs-a-{first}.dpk", f"v1-several-pairs-b-{second}.dpk"]
        assert ("error" in case) == (becomes in ("conflict", "rows"))
        assert "error" in case or ("w" in case["result"]) == (becomes != "gone")
        for prefer in (0, 1) if "error" in case else ():
            assert "result" in cases[f"{first}-{second}-prefer-{prefer}"]


def test_every_element_type_is_restored_by_a_vector() -> None:
    """Each element type of section 3.6 occurs in an expected result."""
    documents = [json.loads(path.read_text("utf-8")) for path in VECTORS.glob("v1-ok-*.json")]
    found = {tensor["dtype"] for document in documents for tensor in document["result"].values()}
    listed, raw = set(first_column("03-index.md", "## 3.6 Element types")), {name for name in found if name.startswith("raw")}
    assert listed == found - raw and raw


def test_safetensors_names_are_those_of_the_page() -> None:
    """The table of section 3.6 is the one of the package and of the reference decoder: names, bytes and which are floats."""
    text = (SPEC / "03-index.md").read_text("utf-8").split("## 3.6 Element types", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d) \| (float|opaque)", text, re.M)
    assert rows == [(t.name, t.safetensors, str(t.itemsize), "float" if t.is_delta else "opaque") for t in BY_NAME.values()]
    reference = reference_decoder()
    assert {theirs: name for name, theirs, _, _ in rows} == reference.SAFETENSORS
    assert {name: int(size) for name, _, size, _ in rows} == reference.ITEMSIZE
    assert list(reference.FLOATS) == [name for name, _, _, kind in rows if kind == "float"]


def test_only_known_rules_are_named() -> None:
    """No page, vector or line of the reference decoder names a rule that does not exist."""
    texts = [path.read_text("utf-8") for path in [*SPEC.rglob("*.md"), SPEC / "reference_decoder.py"]]
    expected = json.loads((VECTORS / "invalid.json").read_text("utf-8"))["vectors"]
    named = {rule for text in texts for rule in re.findall(r"\bR\d+\b", text)} | {row["rule"] for row in expected.values()}
    assert named <= set(RULES)


def test_links_between_pages_exist() -> None:
    """Pages link to files that are there."""
    for page in SPEC.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_annotated_pack_is_the_example_vector() -> None:
    """The rows of section 2.6 are the bytes of its file."""
    data = (VECTORS / "v1-ok-example.dpk").read_bytes()
    section = (SPEC / "02-container.md").read_text("utf-8").split("## 2.6", 1)[1]
    end = 0
    for offset, digits in re.findall(r"^\| (\d+) \| `([0-9A-F ]+)", section, re.M):
        row = bytes.fromhex(digits)
        assert int(offset) == end
        assert data[end : end + len(row)] == row
        end += len(row)
    assert end == 116  # 112 and the first bytes of the index
