"""Cards: front matter completed in place, texts that nobody else can write into, figures that are the pack's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.hub import Hub
from support.laws import examples
from support.publishing import Pair, with_base

import deltapack
from deltapack.errors import OutputError, RecipeError
from deltapack.merging.basecard import front_of
from deltapack.packs.inspecting import inspect_pack
from deltapack.publishing.cards import CardFacts, card_text, completed_card
from deltapack.publishing.frontmatter import completed

README = Path("README.md")


@pytest.mark.parametrize(
    ("front", "wanted", "result"),
    [
        ("license: mit\n", {"license": "mit"}, "license: mit\n"),
        ("license: mit\n", {"a": 1}, "license: mit\na: 1\n"),
        ("# first\nlicense: mit # why\n\n# last\n", {"a": "b"}, "# first\nlicense: mit # why\n\n# last\na: b\n"),
        ("license: mit\nz: 1\n", {"license": "other"}, "license: other\nz: 1\n"),
        ("tags:\n- a\n# c\nz: 1\n", {"tags": ["a", "b"]}, "tags:\n- a\n- b\n# c\nz: 1\n"),
        ("tags: [a]\nz: 1\n", {"tags": ["a", "b"]}, "tags:\n- a\n- b\nz: 1\n"),
        ("tags:\nz: 1\n", {"tags": ["b"]}, "tags:\n- b\nz: 1\n"),
        ("a:\n  b:\n  - c: d\nz: |\n  text\n  more\n", {"a": 1}, "a: 1\nz: |\n  text\n  more\n"),
        ("z: |\n  text\n", {"z": "t", "y": "u"}, "z: t\ny: u\n"),
        ("{a: 1, b: 2}\n", {"a": 3}, "a: 3\nb: 2\n"),
        ("  a: 1\n  b: 2\n", {"b": 3}, "a: 1\nb: 3\n"),
        ("- a list\n", {"b": 3}, "b: 3\n"),
    ],
)
def test_front_matter_is_completed_in_place(front: str, wanted: Mapping[str, Any], result: str) -> None:
    body = "\n# Text\r\n---\n  end"
    assert completed(f"---\n{front}---\n{body}".encode(), wanted, README) == f"---\n{result}---\n{body}"


def test_a_text_without_front_matter() -> None:
    assert completed(b"\xef\xbb\xbfText.", {"a": 1}, README) == "---\na: 1\n---\n\nText."
    assert completed(b"---\n---\nText.", {"a": 1}, README).endswith("Text.")
    assert completed("é\r\n---".encode(), {}, README) == "é\r\n---"


@pytest.mark.parametrize("front", ["{: :", "a: &x 1\nb: *x", "a: 1\na: 2", "a: [", "1: 2"])
def test_front_matter_that_is_none(front: str) -> None:
    with pytest.raises(RecipeError, match=r"README\.md"):
        completed(f"---\n{front}\n---\n".encode(), {"a": 1}, README)


texts = st.text(max_size=12)
values = st.one_of(texts, st.booleans(), st.integers(), st.lists(texts, max_size=3))


@given(st.dictionaries(texts, values, max_size=5), st.dictionaries(texts, values, max_size=4), texts, st.booleans())
@examples(60)
def test_what_is_wanted_is_there_and_nothing_else_changed(front: dict[str, Any], wanted: dict[str, Any], body: str, flow: bool) -> None:
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, default_flow_style=True if flow else None)
    card = f"---\n{text}---\n{body}".encode()
    try:
        before = front_of(card, README)
    except RecipeError:
        return
    made = completed(card, wanted, README)
    if before:
        assert front_of(made.encode(), README) == {**before, **wanted}
    assert made.endswith(body)


@pytest.fixture
def facts(pair: Pair) -> CardFacts:
    return CardFacts(inspect_pack(pair.pack), "me/math", "org/base", "0" * 40, {}, "LlamaForCausalLM")


def test_figures_are_those_of_the_pack(facts: CardFacts, pair: Pair) -> None:
    text, summary = card_text(facts), facts.summary
    for told in (
        f"({pair.pack.stat().st_size:,} bytes)",
        f"{summary.ratio:.1f} times larger",
        f"| bits per changed weight | {summary.delta_bits_per_weight:.4g} |",
        "| made with | dare, drop rate 0.5, values auto |",
        "| tensors | 2 delta |",
        "| kept whole | 0 tensors bit for bit, 1 with the difference of every element |",
        f"| pack id | `{summary.id}` |",
        f"| content id | `{summary.content_id}` |",
        f"`org/base`, commit `{'0' * 40}`, fingerprint `{summary.base_fingerprint}`",
        "close to the ones that were packed, and not the same",
    ):
        assert told in text, told


@pytest.mark.parametrize(
    ("architecture", "auto"),
    [
        ("LlamaForCausalLM", "AutoModelForCausalLM"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("T5ForConditionalGeneration", "AutoModel"),
        ("BertModel", "AutoModel"),
        (None, None),
    ],
)
def test_snippets(facts: CardFacts, architecture: str | None, auto: str | None) -> None:
    text = card_text(replace(facts, architecture=architecture))
    assert f"deltapack apply org/base@{'0' * 40} math/math.dpk -o restored/" in text and "deltapack pull me/math -o math\n" in text
    assert f'model = {auto}.from_pretrained("me/math")' in text if auto else "from_pretrained" not in text
    for code in text.split("```python\n")[1:]:
        compile(code.partition("```")[0], "card", "exec")


def test_nothing_is_said_that_is_not_known(facts: CardFacts) -> None:
    text = card_text(replace(facts, base=None, revision=None))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {"library_name": "deltapack", "tags": ["deltapack"]} and "of its base" in text
    hostile = {"license": "x" * 300, "language": [1], "tags": ["ok", "a\nb", 5, "license:mit", "x" * 300], "pipeline_tag": ["a"]}
    front = yaml.safe_load(card_text(replace(facts, base_front=hostile)).split("---\n")[1])
    assert set(front) == {"base_model", "base_model_relation", "library_name", "tags"} and front["tags"] == ["ok", "deltapack"]


def test_names_cannot_write_into_the_card(facts: CardFacts) -> None:
    summary = replace(facts.summary, path=Path("a|`<b>\n---.dpk"), created_by="x|\n# y", recipe={"method": "<script>|", "target": "[a](b)"})
    text = card_text(replace(facts, summary=summary))
    assert "<script>" not in text and "[a](b)" not in text and "<b>" not in text and "\n# y" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {3}


def test_tags_and_bases_of_a_card_stay(facts: CardFacts) -> None:
    for said, wanted in (
        ("tags: maths", {"tags": ["maths", "deltapack"]}),
        ("tags: [deltapack]", {"tags": ["deltapack"]}),
        ("base_model: [org/base, org/two]", {"base_model": ["org/base", "org/two"]}),
        ("base_model: ./base", {"base_model": ["org/base"]}),
        ("base_model_relation: quantized", {"base_model_relation": "quantized"}),
        ("library_name: deltapack", {"library_name": "deltapack"}),
        ("language: no", {"language": False}),
    ):
        text, _ = completed_card(f"---\n{said}\n---\nMine".encode(), facts, README)
        front = front_of(text.encode(), README)
        assert {key: front[key] for key in wanted} == wanted and front["library_name"] == "deltapack", said


def test_the_card_is_that_of_push(filled: Hub, pair: Pair, tmp_path: Path) -> None:
    report = deltapack.push(pair.pack, "me/math", base="org/base")
    assert report.base_revision is not None
    named = f"org/base@{report.base_revision}"
    assert deltapack.model_card(pair.pack, base=named, repo="me/math") == report.card
    assert deltapack.model_card(pair.pack, base="org/base", repo="me/math", out=tmp_path / "card.md") == report.card
    assert (tmp_path / "card.md").read_text() == report.card
    with pytest.raises(OutputError, match="the output exists"):
        deltapack.model_card(pair.pack, out=tmp_path / "card.md")
    deltapack.model_card(pair.pack, out=tmp_path / "card.md", force=True)
    assert "ORG/NAME" in (tmp_path / "card.md").read_text()


def test_a_card_without_the_base_at_hand(filled: Hub, pair: Pair, made: Callable[..., Pair]) -> None:
    text = deltapack.model_card(pair.pack, base="org/none@v1")
    assert "license" not in text and "base_model: org/none" in text and "deltapack apply org/none@v1 " in text
    carried = made("---\nbase_model: org/base\n---\nMine", name="other")
    assert "license: apache-2.0" in deltapack.model_card(carried.pack)
    own = made("---\nbase_model: [org/base, org/two]\n---\nMine", name="two")
    assert "license" not in deltapack.model_card(own.pack)
    for bad in ("base", "org/base/more"):
        with pytest.raises(RecipeError, match="no name of a repository"):
            deltapack.model_card(pair.pack, base=bad)


def test_the_base_s_own_card_is_not_taken_for_the_pack_s(hub: Hub, made: Callable[..., Pair]) -> None:
    from support.publishing import BASE_CARD

    pair = made(BASE_CARD)
    with_base(hub, pair)
    assert "The base." not in deltapack.push(pair.pack, "me/math", base="org/base").card
