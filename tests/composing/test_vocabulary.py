"""Uniting vocabularies: each token once, with the row of the pack that brought it, and tokenizer files that real libraries read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.builders import Model, Tensor, cast, decode_by_spec, leftovers, mean, random_tensor, read_folder, read_model, write_file
from support.vocabularies import BASE_TOKENS, GROWING, ROWS, WIDTH, WORDS, Family, Tuned, family, files_of, token, tokenizer_json

import deltapack
from deltapack.checkpoint import TensorInfo
from deltapack.composing.tokenizer_files import AddedToken, Tokenizer
from deltapack.composing.vocabulary import Growth, growth_of, unite
from deltapack.dtypes import BY_NAME
from deltapack.errors import BaseMismatchError, CheckpointError, MergeConflictError
from deltapack.format.index import BaseRef, Entry
from deltapack.merging.recipe import MergeRecipe

MATH = Tuned({40: "<math>", 41: "plus", 42: "<both>"})
CODE = Tuned({40: "<both>", 41: "<code>", 42: "indent"}, rows=48)
PLAIN = Tuned()
UNITED = {"<s>": 38, "</s>": 39, "<math>": 40, "plus": 41, "<both>": 42, "<code>": 43, "indent": 44}


def merge(found: Family, out: Path, **options: Any) -> deltapack.MergeReport:
    return deltapack.merge(found.base, found.packs, out, **({"vocab": "union", "weights": [0.25]} | options))


def document(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def listed(folder: Path) -> dict[str, int]:
    return {row["content"]: row["id"] for row in document(folder, "tokenizer.json")["added_tokens"]}


# ------------------------------------------------------------------------------------------------- tensors and files


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_every_token_once_with_its_own_row(tmp_path: Path, dtype: str, method: str) -> None:
    found = family(tmp_path, MATH, CODE, PLAIN, dtype=dtype)
    report = merge(found, tmp_path / "out", method=method)
    result = read_model(tmp_path / "out")
    merge(found, tmp_path / "without", vocab="base", method=method)
    without = read_model(tmp_path / "without")
    assert result["model.norm.weight"] == without["model.norm.weight"]
    for name in GROWING:
        rows, (math, code, _) = result[name].bits, (tuned[name].bits for tuned in found.tuned)
        assert rows.shape == (45, WIDTH)
        assert rows[:ROWS].tobytes() == without[name].bits.tobytes()
        assert rows[[40, 41]].tobytes() == math[[40, 41]].tobytes()
        assert rows[[43, 44]].tobytes() == code[[41, 42]].tobytes()
        assert Tensor(dtype, rows[42]) == mean([math[42], code[40]], dtype)
    assert listed(tmp_path / "out") == UNITED
    assert any("5 new tokens" in note and "3 of 0.dpk, 3 of 1.dpk" in note for note in report.notes)
    assert any("5 new rows of 1.dpk have no token" in note for note in report.notes)


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_merged_pack_is_the_merge(tmp_path: Path, method: str, workers: int) -> None:
    found = family(tmp_path, CODE, MATH)
    merge(found, tmp_path / "out", method=method, workers=1)
    merge(found, tmp_path / "merged.dpk", method=method, workers=workers)
    deltapack.apply(found.base, tmp_path / "merged.dpk", tmp_path / "applied")
    deltapack.verify(tmp_path / "merged.dpk", found.base)
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "applied")
    assert decode_by_spec(read_model(found.base), tmp_path / "merged.dpk") == read_model(tmp_path / "out")
    merge(found, tmp_path / "again.dpk", method=method, workers=5 - workers)
    assert (tmp_path / "merged.dpk").read_bytes() == (tmp_path / "again.dpk").read_bytes()


def test_a_merged_pack_can_be_united_again(tmp_path: Path) -> None:
    found = family(tmp_path, MATH, CODE, Tuned({40: "<third>", 41: "<code>"}))
    deltapack.merge(found.base, found.packs[:2], tmp_path / "two.dpk", vocab="union")
    deltapack.merge(found.base, [tmp_path / "two.dpk", found.packs[2]], tmp_path / "out", vocab="union")
    assert listed(tmp_path / "out") == UNITED | {"<third>": 45}
    name = GROWING[0]
    assert read_model(tmp_path / "out")[name].bits[45].tobytes() == found.tuned[2][name].bits[40].tobytes()


def test_another_type_of_the_result(tmp_path: Path) -> None:
    found = family(tmp_path, MATH, CODE)
    merge(found, tmp_path / "out", dtype="bf16")
    rows = read_model(tmp_path / "out")[GROWING[0]]
    assert rows.dtype == "bf16"
    own = [found.tuned[0][GROWING[0]].bits[40], found.tuned[1][GROWING[0]].bits[41]]
    assert np.array_equal(rows.bits[[40, 43]], cast(np.stack(own), "bf16").bits)
    assert document(tmp_path / "out", "config.json")["torch_dtype"] == "bfloat16"
    assert document(tmp_path / "out", "config.json")["vocab_size"] == 45


def test_the_other_files_follow(tmp_path: Path) -> None:
    found = family(tmp_path, MATH, CODE)
    merge(found, tmp_path / "out")
    config, tokens = document(tmp_path / "out", "config.json"), document(tmp_path / "out", "tokenizer_config.json")
    assert (config["vocab_size"], config["text_config"]["vocab_size"]) == (45, 45)
    assert document(tmp_path / "out", "added_tokens.json") == UNITED
    assert {row["content"]: int(key) for key, row in tokens["added_tokens_decoder"].items()} == UNITED
    assert tokens["additional_special_tokens"] == ["<math>", "<both>", "<code>"]
    assert document(tmp_path / "out", "special_tokens_map.json")["additional_special_tokens"] == ["<math>", "<both>", "<code>"]


def test_the_tokens_of_the_pack_whose_files_are_taken_keep_their_ids(tmp_path: Path) -> None:
    found = family(tmp_path, MATH, CODE, PLAIN)
    merge(found, tmp_path / "out", assets=found.packs[1])
    assert listed(tmp_path / "out") == {"<s>": 38, "</s>": 39, "<both>": 40, "<code>": 41, "indent": 42, "<math>": 43, "plus": 44}
    assert read_model(tmp_path / "out")[GROWING[1]].bits[43].tobytes() == found.tuned[0][GROWING[1]].bits[40].tobytes()
    for assets in ("base", found.packs[2]):
        merge(found, tmp_path / "out", assets=assets, force=True)
        assert listed(tmp_path / "out") == UNITED
        assert document(tmp_path / "out", "config.json")["vocab_size"] == 45


def test_one_pack_is_itself(tmp_path: Path) -> None:
    found = family(tmp_path, MATH)
    merge(found, tmp_path / "out", weights=[1])
    deltapack.apply(found.base, found.packs[0], tmp_path / "applied")
    own = {"README.md": b"", "model.safetensors": b""}  # the card of a merge, and metadata that say which of the two it is
    assert read_folder(tmp_path / "out") | own == read_folder(tmp_path / "applied") | own
    assert read_model(tmp_path / "out") == read_model(tmp_path / "applied")


def test_packs_that_add_nothing_merge_as_before(tmp_path: Path) -> None:
    found = family(tmp_path, PLAIN, PLAIN)
    merge(found, tmp_path / "out")
    merge(found, tmp_path / "usual", vocab=None)
    assert read_model(tmp_path / "out") == read_model(tmp_path / "usual")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "usual" / "tokenizer.json").read_bytes()
    bare = write_file(tmp_path / "bare.safetensors", read_model(found.base))
    write_file(tmp_path / "tuned.safetensors", found.tuned[0])
    deltapack.compress(bare, tmp_path / "tuned.safetensors", tmp_path / "bare.dpk")
    deltapack.merge(bare, [tmp_path / "bare.dpk"], tmp_path / "bare out", vocab="union")
    assert read_model(tmp_path / "bare out").keys() == found.tuned[0].keys()


def test_rows_that_the_base_has_already(tmp_path: Path) -> None:
    """Padding of the base that packs name: one name for a row, and the row is merged like any other."""
    named = Tuned({40: "<think>", 41: "<tool>"})
    found = family(tmp_path, named, Tuned({40: "<think>"}), PLAIN, rows=44)
    merge(found, tmp_path / "out")
    merge(found, tmp_path / "usual", vocab="base")
    assert read_model(tmp_path / "out") == read_model(tmp_path / "usual")
    assert listed(tmp_path / "out") == {"<s>": 38, "</s>": 39, "<think>": 40, "<tool>": 41}
    two = family(tmp_path / "two", named, Tuned({40: "<other>"}), rows=44)
    with pytest.raises(MergeConflictError, match=r"1\.dpk: packs use row 40 .* expected '<think>', as in .*0\.dpk, found '<other>'"):
        merge(two, tmp_path / "two" / "out")
    full = Tuned({number: f"<{number}>" for number in range(40, 46)})
    found = family(tmp_path / "full", full, Tuned({40: "<40>"}), rows=44)
    merge(found, tmp_path / "full" / "out")
    assert read_model(tmp_path / "full" / "out")[GROWING[0]].bits[44:].tobytes() == found.tuned[0][GROWING[0]].bits[44:].tobytes()
    assert listed(tmp_path / "full" / "out")["<45>"] == 45


def test_a_reserved_token_may_be_renamed_once(tmp_path: Path) -> None:
    reserved = BASE_TOKENS | {40: "<reserved>"}
    found = family(tmp_path, PLAIN, Tuned({40: "<tool>"}), rows=41, base_tokens=reserved)
    merge(found, tmp_path / "out")
    assert listed(tmp_path / "out") == {"<s>": 38, "</s>": 39, "<tool>": 40}
    assert document(tmp_path / "out", "added_tokens.json") == {"<s>": 38, "</s>": 39, "<tool>": 40}


def test_packs_that_search_for_a_token_otherwise(tmp_path: Path) -> None:
    found = family(tmp_path, MATH, Tuned({40: token(40, "<both>", lstrip=True), 39: token(39, "</s>", normalized=True)}))
    report = merge(found, tmp_path / "out")
    rows = {row["content"]: row for row in document(tmp_path / "out", "tokenizer.json")["added_tokens"]}
    assert not rows["<both>"]["lstrip"] and rows["</s>"]["normalized"]
    assert any("'<both>'" in note and "first pack" in note for note in report.notes)


def test_ways_to_ask(tmp_path: Path) -> None:
    found = family(tmp_path, MATH, CODE)
    recipe = MergeRecipe("ties")
    preview = deltapack.preview_merge(found.base, found.packs, tmp_path / "x", vocab="union", recipe=recipe)
    assert preview.grown == [(name, ROWS, 45) for name in GROWING]
    assert preview.assets == str(found.packs[0])
    assert any("5 new tokens" in note for note in preview.notes)
    report = merge(found, tmp_path / "out", recipe=recipe, weights=None, report=True)
    assert report.survey == deltapack.survey_merge(found.base, found.packs, recipe=recipe, vocab="union")
    explained = deltapack.explain_merge(found.base, found.packs, GROWING[0], recipe=recipe, vocab="union")
    assert explained.result == read_model(tmp_path / "out")[GROWING[0]].bits.reshape(-1)[explained.element]
    for out in ("out", "out.dpk"):
        most = deltapack.preview_merge(found.base, found.packs, tmp_path / out, vocab="union", force=True).bytes
        merge(found, tmp_path / out, force=True)
        path = tmp_path / out
        assert sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())) <= most + 8192
    (tmp_path / "merge.yml").write_text("merge_method: ties\nmodels: [{model: 0.dpk}, {model: 1.dpk}]\ntokenizer_source: union\n")
    asked_by_file = deltapack.read_merge_file(tmp_path / "merge.yml")
    assert (asked_by_file.vocab, asked_by_file.assets) == ("union", None)
    deltapack.merge(found.base, asked_by_file.packs, tmp_path / "by file", recipe=asked_by_file.recipe, vocab=asked_by_file.vocab)
    assert read_model(tmp_path / "by file")[GROWING[0]].shape == (45, WIDTH)
    card = (tmp_path / "by file" / "README.md").read_text()
    assert "tokenizer_source: union" in card and "with the new tokens of all packs" in card


# ------------------------------------------------------------------------------------------------------ real libraries


@pytest.mark.filterwarnings("ignore")
def test_real_tokenizers_give_the_united_ids(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install '.[test]'")
    found = family(tmp_path, MATH, CODE)
    owners = {"<math>": (0, 40), "plus": (0, 41), "<code>": (1, 41), "indent": (1, 42)}
    for assets in (None, "base", found.packs[1]):
        merge(found, tmp_path / "out", assets=assets, force=True)
        rows = read_model(tmp_path / "out")[GROWING[1]].bits
        plain = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
        loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert len(loaded) == plain.get_vocab_size() == len(rows) == 45
        for content, (pack, row) in owners.items():
            (key,) = plain.encode(content, add_special_tokens=False).ids
            assert loaded(content, add_special_tokens=False).input_ids == [key]
            assert loaded.convert_ids_to_tokens(key) == content
            assert rows[key].tobytes() == found.tuned[pack][GROWING[1]].bits[row].tobytes()
        (both,) = plain.encode("<both>", add_special_tokens=False).ids
        assert Tensor("f32", rows[both]) == mean([found.tuned[0][GROWING[1]].bits[42], found.tuned[1][GROWING[1]].bits[40]], "f32")
        assert plain.encode("a<code>b", add_special_tokens=False).ids == [0, plain.token_to_id("<code>"), 1]
        assert loaded.decode([0, plain.token_to_id("<code>"), 1], skip_special_tokens=True) in ("ab", "a b")


# ------------------------------------------------------------------------------------------------------------- refusals


def another(count: int = 45) -> Model:
    return {GROWING[0]: random_tensor(7, (count, WIDTH))}


def tokenizer_file(rows: Sequence[Mapping[str, Any]], words: Mapping[str, int] = WORDS) -> dict[str, str]:
    return {"tokenizer.json": json.dumps(tokenizer_json(rows, words))}


WITHOUT: Mapping[str, None] = {"tokenizer.json": None}
FEWER = {"lm_head.weight": random_tensor(7, (36, WIDTH))}
BOTH = {name: random_tensor(7, (41, WIDTH)) for name in GROWING}
ONE = Tuned({40: "<one>"})
REFUSED: dict[str, tuple[Tuned, Tuned, dict[str, Any], str]] = {
    "no tokenizer": (ONE, Tuned({40: "<x>"}, files=WITHOUT), {}, r"1\.dpk: the pack has rows for new tokens, but no tokenizer\.json"),
    "sentencepiece": (ONE, Tuned({40: "<x>"}, files={**WITHOUT, "tokenizer.model": "x"}), {}, r"no tokenizer\.json"),
    "words": (ONE, Tuned(rows=41, files=tokenizer_file([], {**WORDS, "new": 40})), {}, "other words .*38 words .*39 words"),
    "one tensor": (ONE, Tuned({40: "<x>"}, tensors=another()), {}, "'model.embed_tokens.weight': .* tensor of 45 rows, found a grown"),
    "not all": (ONE, Tuned({40: "<x>"}, tensors=another(ROWS)), {}, "'lm_head.weight': .* a grown tensor of 41 rows, found a delta"),
    "fewer rows": (ONE, Tuned(tensors=FEWER), {}, "no tensor has another shape: expected 40 rows, found a shrunk"),
    "stored whole": (
        ONE,
        Tuned({40: "<x>"}, recipe={"exclude": "lm_head"}),
        {},
        r"'lm_head.weight': .* an exact tensor of shape \[41, 32\]",
    ),
    "a head": (ONE, Tuned({40: "<x>"}, tensors={"score": random_tensor(3, (41, 8))}), {}, "'score': .* old and new rows together"),
    "no vocabulary": (ONE, Tuned(tensors={"model.norm.weight": random_tensor(3, (700,))}), {}, "different numbers of rows in the base"),
    "no row": (ONE, Tuned({40: "<x>", 41: "<y>"}, tensors=BOTH), {}, "'<y>' has no row: expected an id below 41, found 41"),
    "moved": (ONE, Tuned(rows=41, files=tokenizer_file([token(40, "<s>")])), {}, "'<s>' has another id than in the base: .* 38, found 40"),
    "gap": (ONE, Tuned({41: "<x>"}), {}, "a gap before the token '<x>'.*expected a token with id 40, found id 41"),
    "a word's id": (ONE, Tuned({3: "<x>"}), {}, "an added token has the id of a word: found '<x>' with id 3"),
    "two rows": (ONE, Tuned({40: "<y>", 41: "<one>"}), {"rows": 44}, "packs use row 40 of the base for different tokens"),
    "two ids": (Tuned({38: "<x>"}), Tuned({39: "<x>"}), {}, "packs use different rows for the token '<x>': expected 38, found 39"),
    "an old and a new row": (Tuned({39: "<x>"}), Tuned({40: "<x>"}), {}, "the token '<x>' has a new row here, and a row of the base in"),
    "no row in the base": (ONE, Tuned({41: "<x>"}), {"base_tokens": BASE_TOKENS | {40: "<far>"}}, "a token without a row.*below 40"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_united(tmp_path: Path, case: str) -> None:
    first, second, options, what = REFUSED[case]
    found = family(tmp_path, first, second, **options)
    for out in ("out", "out.dpk"):
        with pytest.raises(MergeConflictError, match=what) as error:
            merge(found, tmp_path / out)
        assert "--vocab PACK" in str(error.value)
        with pytest.raises(MergeConflictError):
            deltapack.preview_merge(found.base, found.packs, tmp_path / out, vocab="union")
        assert not (tmp_path / out).exists() and not leftovers(tmp_path)


def test_a_tensor_that_cannot_grow(tmp_path: Path) -> None:
    """One pack has integers where the other adds rows; preferring it leaves no place for them."""
    integers = Tensor("u8", np.zeros((ROWS, WIDTH), np.uint8))
    found = family(tmp_path, ONE, Tuned(tensors={GROWING[0]: integers}))
    what = r"1\.dpk: tensor 'lm_head.weight': .* others add rows to it: expected 41 rows, found u8 \[40, 32\].*--vocab PACK"
    with pytest.raises(MergeConflictError, match=what):
        merge(found, tmp_path / "out", prefer=found.packs[1])
    merge(found, tmp_path / "out", prefer=found.packs[1], vocab="base")
    assert read_model(tmp_path / "out")[GROWING[0]] == integers


def test_where_nobody_says_what_is_new(tmp_path: Path) -> None:
    found = family(tmp_path, MATH, CODE, Tuned(files=WITHOUT))
    with pytest.raises(MergeConflictError, match=r"would have no tokenizer\.json.*--assets"):
        merge(found, tmp_path / "out", assets=found.packs[2])
    (found.base / "tokenizer.json").unlink()
    with pytest.raises(BaseMismatchError, match=r"tokenizer\.json.*no such file"):  # the packs' own refer to it
        merge(found, tmp_path / "out")
    for number in range(3):  # a base that never had one
        tuned = tmp_path / f"{number}"
        deltapack.compress(found.base, tuned, found.packs[number], force=True, allow_unrelated=True)
    with pytest.raises(MergeConflictError, match=r"the base has no tokenizer\.json"):
        merge(found, tmp_path / "out")


def test_tied_tensors_grow_once(tmp_path: Path) -> None:
    known, rng = [token(key, content) for key, content in BASE_TOKENS.items()], torch.Generator().manual_seed(0)
    base = torch.randn(ROWS, WIDTH, generator=rng)

    def write(name: str, embedding: torch.Tensor, head: torch.Tensor, rows: Sequence[Mapping[str, Any]]) -> Path:
        (tmp_path / name).mkdir()
        torch.save({"embed": embedding, "lm_head": head}, tmp_path / name / "pytorch_model.bin")
        for file, text in files_of(rows, len(embedding)).items():
            (tmp_path / name / file).write_text(text)
        return tmp_path / name

    write("base", base, base, known)
    packs, grown = [], []
    for number in range(3):
        embedding = torch.cat([base + 0.01 * torch.randn(ROWS, WIDTH, generator=rng), torch.randn(1, WIDTH, generator=rng)])
        head = embedding if number < 2 else embedding + 1
        tuned = write(f"{number}", embedding, head, [*known, token(ROWS, f"<{number}>")])
        packs.append(tmp_path / f"{number}.dpk")
        grown.append(embedding.numpy())
        deltapack.compress(tmp_path / "base", tuned, packs[-1])
    deltapack.merge(tmp_path / "base", packs[:2], tmp_path / "out", vocab="union")
    result = read_model(tmp_path / "out")
    assert result.keys() == {"embed"}
    assert result["embed"].bits[ROWS:].tobytes() == grown[0][ROWS:].tobytes() + grown[1][ROWS:].tobytes()
    with pytest.raises(MergeConflictError, match=r"2\.dpk: tensor 'lm_head': the pack stores old and new rows together"):
        deltapack.merge(tmp_path / "base", packs, tmp_path / "untied", vocab="union")


def test_a_tied_tensor_cannot_grow_in_two_ways() -> None:
    """No writer makes such a pack, a hostile one may."""
    f32, names = BY_NAME["f32"], ("embed", "lm_head")
    tensors = {"embed": TensorInfo("embed", f32, (4, 2), "model.safetensors")}
    base = SimpleNamespace(tensors=tensors, aliases={"lm_head": "embed"}, path=Path("base"))
    for shapes in (((6, 2), (4, 2)), ((4, 2), (6, 2)), ((6, 2), (5, 2))):
        kinds = ["grown" if shape[0] > 4 else "delta" for shape in shapes]
        rows = zip(names, kinds, shapes, strict=True)
        entries = [Entry(name, kind, f32, shape, base=BaseRef(name, f32, (4, 2), "")) for name, kind, shape in rows]
        pack = SimpleNamespace(index=SimpleNamespace(entries=entries), path=Path("a.dpk"))
        with pytest.raises(MergeConflictError, match=r"a\.dpk: tensor 'lm_head': the pack grew a tied tensor"):
            growth_of(base, [pack])  # type: ignore[list-item]


def test_a_wrong_base_is_told_first(tmp_path: Path) -> None:
    found, other = family(tmp_path, MATH, CODE), family(tmp_path / "other", MATH, rows=50)
    with pytest.raises(BaseMismatchError):
        deltapack.merge(other.base, found.packs, tmp_path / "out", vocab="union")


# ----------------------------------------------------------------------------------------------------------------- laws

CONTENTS = st.sampled_from([f"<{letter}>" for letter in "abcdefgh"])


def tokenizer(tokens: Mapping[int, str], start: int) -> Tokenizer:
    added = {key: AddedToken(content, False, False, False, False, True) for key, content in tokens.items()}
    return Tokenizer(Path("tokenizer.json"), {f"w{number}": number for number in range(start - 1)}, added)


@given(
    contents=st.lists(st.lists(CONTENTS, unique=True), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    start=st.integers(1, 20),
    data=st.data(),
)
def test_united_tokens(contents: list[list[str]], padding: int, start: int, data: st.DataObject) -> None:
    """Each token once; ids without gaps after the base's; every owner's own row; who comes first keeps its ids."""
    base = tokenizer({start - 1: "<eos>"}, start)
    packs = [tokenizer({start - 1: "<eos>"} | dict(enumerate(own, start)), start) for own in contents]
    growth = Growth(start, {number: start + len(own) + padding for number, own in enumerate(contents) if own or padding})
    first = data.draw(st.none() | st.integers(0, len(contents) - 1))
    found = unite(base, packs, growth, [Path(f"{number}.dpk") for number in range(len(packs))], first)
    names = {token.content for own in packs for token in own.added.values()}
    assert found.added[start - 1] == base.added[start - 1]
    assert sorted(found.added) == list(range(start - 1, start + found.new)) and found.size == start + found.new
    assert sorted(token.content for token in found.added.values()) == sorted(names | {"<eos>"})
    for number, own in enumerate(contents):
        rows = {place: start + key for key, place in enumerate(found.places.get(number, ())) if place >= 0}
        assert {found.added[row].content: place for place, row in rows.items()} == {name: start + key for key, name in enumerate(own)}
    leading = found.donor if first is None else first
    assert all(found.added[start + key].content == content for key, content in enumerate(contents[leading or 0]))
    again = unite(base, packs, growth, [Path(f"{number}.dpk") for number in range(len(packs))], first)
    assert again == found


# ------------------------------------------------------------------------------------------------------- hostile content


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"a": 1, "a": 1}', b"[" * 5000, b'{"a": NaN}', b'{"a":' * 5000])
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "tokenizer_config.json"])
def test_files_that_are_not_json(tmp_path: Path, name: str, data: bytes) -> None:
    found = family(tmp_path, MATH, Tuned({40: "<x>"}, files={name: data.decode("latin-1")}))
    with pytest.raises(CheckpointError) as error:
        merge(found, tmp_path / "out", assets=found.packs[1])
    assert name in str(error.value) and "1.dpk" in str(error.value)
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


@pytest.mark.parametrize("text", ['{"vocab_size": 41, "x": "\\ud800"}', '{"vocab_size": 41, "x": 1e999}'])
def test_files_that_cannot_be_written_again(tmp_path: Path, text: str) -> None:
    found = family(tmp_path, MATH, Tuned({40: "<x>"}, files={"config.json": text}))
    with pytest.raises(CheckpointError, match=r"config\.json: the file cannot be written again"):
        merge(found, tmp_path / "out", assets=found.packs[1])
