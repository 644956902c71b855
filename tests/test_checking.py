"""What Python callers pass is checked before work begins, and what is of another type is an error of our own."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import small_model, tuned_model
from support.fixtures import PackOf

import deltapack
from deltapack.checking import as_count, as_items, as_number, as_pair, as_path, as_paths, as_text
from deltapack.errors import RecipeError
from deltapack.merging.recipe import MergeRecipe, Rule


@pytest.mark.parametrize("value", [1, 1.5, np.float32(0.5), np.int64(3), np.array(2.0), torch.tensor(0.25), decimal.Decimal("0.5")])
def test_numbers(value: Any) -> None:
    found = as_number("x", value)
    assert type(found) is float and found == float(value)


@pytest.mark.parametrize("value", ["1", b"1", True, None, [1], {}, 1j, object(), 10**400, np.zeros(2), torch.zeros(2)])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(RecipeError, match="x is not a number"):
        as_number("x", value)


def test_counts() -> None:
    assert as_count("x", 3) == 3
    for wrong in ("3", 3.0, True, None):
        with pytest.raises(RecipeError, match="x is not a whole number"):
            as_count("x", wrong)


def test_paths(tmp_path: Path) -> None:
    assert as_path("x", "a/b") == as_path("x", Path("a/b")) == Path("a/b")
    assert as_paths("x", ["a", Path("b")]) == as_paths("x", iter(("a", "b"))) == (Path("a"), Path("b"))
    assert as_paths("x", []) == ()
    for wrong in (None, 3, b"a", object()):
        with pytest.raises(RecipeError, match="x is not a path: expected a path, found"):
            as_path("x", wrong)
        with pytest.raises(RecipeError, match="x is not a list of paths"):
            as_paths("x", wrong)
    for nul in ("a\0b", Path("a\0b")):
        with pytest.raises(RecipeError, match=r"x is not a path.* found .*NUL"):
            as_path("x", nul)
    for long in ("a" * 300, tmp_path / ("b" * 300), "a/" * 3000):
        with pytest.raises(RecipeError, match=r"x is not a path: a name in it is too long: found '"):
            as_path("x", long)
    assert as_path("x", "https://a.org/" + "a" * 300).name == "a" * 300
    with pytest.raises(RecipeError, match=r"x is not a path.* found .*such characters"):
        as_path("x", "a\ud800b.dpk")
    with pytest.raises(RecipeError, match="expected one path, not several"):
        as_path("x", ["a"])
    with pytest.raises(RecipeError, match=r"where a list is meant: found 'a\.dpk'\. Write \['a\.dpk'\]\."):
        as_paths("x", "a.dpk")
    with pytest.raises(RecipeError, match=r"one path, where a list is meant.* Write sorted\(Path\('.*'\)\.glob\('\*\.dpk'\)\)\.$"):
        as_paths("x", tmp_path)
    with pytest.raises(RecipeError, match="is a mapping"):
        as_paths("x", {"a": 1})
    with pytest.raises(RecipeError, match=r"x\[1\] is not a path"):
        as_paths("x", ["a", 3])


def test_lists_pairs_and_texts() -> None:
    assert as_text("x", "a") == "a" and as_pair("x", ["a", "b"]) == ("a", "b") and as_items("x", iter("ab"), "texts") == ("a", "b")
    for wrong in ("ab", b"a", {"a": "b"}, 3, None, Path("a")):
        with pytest.raises(RecipeError, match="x is not a list: expected a list of texts"):
            as_items("x", wrong, "texts")
    for pair in ("ab", ("a",), ("a", 3), {"a", "b"}, None):
        with pytest.raises(RecipeError, match="x is not a pair of texts"):
            as_pair("x", pair)
    with pytest.raises(RecipeError, match="x is not a text: expected a text, found 3"):
        as_text("x", 3)


WRONG_SETTINGS: dict[str, object] = {
    "recipe": {"drop_rate": 0.5},
    "name_map": "x=y",
    "leave_out": "*.txt",
    "keep_base": 5,
    "weight_files": ["single"],
    "max_side_file": 1.5,
    "workers": "2",
}


@pytest.mark.parametrize(("name", "value"), [*WRONG_SETTINGS.items(), ("recipe", {}), ("name_map", ["x=y"]), ("leave_out", [3])])
@pytest.mark.parametrize("preview", [True, False])
def test_settings_of_a_compression(name: str, value: object, preview: bool, pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    pack_of(base, tuned_model(base))
    options: dict[str, Any] = {name: value}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RecipeError, match=name):
        if preview:
            deltapack.preview_compress(tmp_path / "base.safetensors", tmp_path / "base.safetensors", **options)
        else:
            deltapack.compress(tmp_path / "base.safetensors", tmp_path / "base.safetensors", tmp_path / "out.dpk", **options)
    assert sorted(tmp_path.iterdir()) == before


WRONG_CALLS: dict[str, Callable[[Path, Path, Path], object]] = {
    "one pack to merge": lambda base, pack, out: deltapack.merge(base, str(pack), out),
    "one path to merge": lambda base, pack, out: deltapack.merge(base, pack, out),  # type: ignore[arg-type]
    "weighted packs to merge": lambda base, pack, out: deltapack.merge(base, {pack: 1}, out),  # type: ignore[arg-type]
    "one pack to preview": lambda base, pack, out: deltapack.preview_merge(base, str(pack), out),
    "one pack to survey": lambda base, pack, out: deltapack.survey_merge(base, str(pack)),
    "one pack to explain": lambda base, pack, out: deltapack.explain_merge(base, str(pack)),
    "several bases": lambda base, pack, out: deltapack.merge([base], [pack], out),  # type: ignore[arg-type]
    "several outputs": lambda base, pack, out: deltapack.merge(base, [pack], [out]),  # type: ignore[arg-type]
    "several preferred": lambda base, pack, out: deltapack.merge(base, [pack], out, prefer=[pack]),  # type: ignore[arg-type]
    "assets 3": lambda base, pack, out: deltapack.merge(base, [pack], out, assets=3),  # type: ignore[arg-type]
    "a method of many": lambda base, pack, out: deltapack.merge(base, [pack], out, method=["ties"]),  # type: ignore[arg-type]
    "semantics 3": lambda base, pack, out: deltapack.merge(base, [pack], out, semantics=3),  # type: ignore[arg-type]
    "weight text": lambda base, pack, out: deltapack.merge(base, [pack], out, weights=["1"]),  # type: ignore[list-item]
    "parameters": lambda base, pack, out: deltapack.merge(base, [pack], out, parameters=["lambda"]),  # type: ignore[arg-type]
    "recipe by name": lambda base, pack, out: deltapack.merge(base, [pack], out, recipe="ties"),  # type: ignore[arg-type]
    "recipe and weights": lambda base, pack, out: deltapack.merge(base, [pack], out, recipe=MergeRecipe(), weights=[0.5]),
    "recipe and method": lambda base, pack, out: deltapack.merge(base, [pack], out, recipe=MergeRecipe(), method="ties"),
    "workers text": lambda base, pack, out: deltapack.merge(base, [pack], out, workers="2"),  # type: ignore[arg-type]
    "compress a list": lambda base, pack, out: deltapack.compress([base], base, out),  # type: ignore[arg-type]
    "compress a number": lambda base, pack, out: deltapack.compress(base, 5, out),  # type: ignore[arg-type]
    "compress to a list": lambda base, pack, out: deltapack.compress(base, base, [out]),  # type: ignore[arg-type]
    "preview a number": lambda base, pack, out: deltapack.preview_compress(base, 5),  # type: ignore[arg-type]
    "shards": lambda base, pack, out: deltapack.apply(base, pack, out, max_shard_size=[5]),  # type: ignore[arg-type]
    "dtype of many": lambda base, pack, out: deltapack.apply(base, pack, out, dtype=["bf16"]),  # type: ignore[arg-type]
    "apply no pack": lambda base, pack, out: deltapack.apply(base, [], out),
    "apply a list of lists": lambda base, pack, out: deltapack.apply(base, [[pack]], out),  # type: ignore[list-item]
    "apply a number": lambda base, pack, out: deltapack.apply(base, 5, out),  # type: ignore[arg-type]
    "apply with a weight to two": lambda base, pack, out: deltapack.apply(base, [pack, pack], out, weight=0.5),
    "rescale two": lambda base, pack, out: deltapack.apply(base, [pack, pack], out, rescale=2),
    "a pack twice": lambda base, pack, out: deltapack.apply(base, [pack, pack], out),
    "one pack of the base": lambda base, pack, out: deltapack.compress(base, base, out, base_packs=pack),  # type: ignore[arg-type]
    "apply to a list": lambda base, pack, out: deltapack.apply(base, pack, [out]),  # type: ignore[arg-type]
    "apply with text": lambda base, pack, out: deltapack.apply(base, pack, out, weight="1"),  # type: ignore[arg-type]
    "apply with nothing": lambda base, pack, out: deltapack.apply(base, pack, out, weight=None),  # type: ignore[arg-type]
    "rescale text": lambda base, pack, out: deltapack.apply(base, pack, out, rescale="2"),  # type: ignore[arg-type]
    "open a list": lambda base, pack, out: deltapack.open_pack([pack]),  # type: ignore[arg-type]
    "verify nothing": lambda base, pack, out: deltapack.verify([]),
    "verify quickly with a base": lambda base, pack, out: deltapack.verify(pack, base, quick=True),
    "load with text": lambda base, pack, out: deltapack.load_state_dict(base, {pack: "1"}),  # type: ignore[arg-type]
    "load twice": lambda base, pack, out: deltapack.load_state_dict(base, [pack, pack]),
    "load nothing": lambda base, pack, out: deltapack.load_state_dict(base, None),  # type: ignore[arg-type]
    "a recipe file": lambda base, pack, out: deltapack.read_merge_file([pack]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_public_functions_raise_our_own_errors(call: Callable[[Path, Path, Path], object], pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    pack = pack_of(base, tuned_model(base))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RecipeError):
        call(tmp_path / "base.safetensors", pack, tmp_path / "out.safetensors")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Rule(0.5),  # type: ignore[arg-type]
        lambda: Rule(("0.5",)),  # type: ignore[arg-type]
        lambda: Rule((0.5,), 3),  # type: ignore[arg-type]
        lambda: MergeRecipe(weights=[0.5]),  # type: ignore[arg-type]
        lambda: MergeRecipe(weights=0.5),  # type: ignore[arg-type]
        lambda: MergeRecipe(None),  # type: ignore[arg-type]
        lambda: MergeRecipe(parameters={3: 1}),  # type: ignore[dict-item]
    ],
)
def test_recipes_of_other_types(wrong: Callable[[], object]) -> None:
    with pytest.raises(RecipeError):
        wrong()


def test_packs_are_read_once(pack_of: PackOf, tmp_path: Path) -> None:
    """A generator of packs, and weights by the names of packs."""
    base = small_model()
    packs = [pack_of(base, tuned_model(base, number), name) for number, name in enumerate(("math", "code"))]
    paths = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    report = deltapack.merge(paths[0], iter(packs), paths[1], weights={"code": 0.25})  # type: ignore[arg-type]
    assert report.weights == [(str(packs[0]), 1.0), (str(packs[1]), 0.25)]
    by_name = paths[1].read_bytes()
    deltapack.merge(paths[0], packs, paths[1], weights=[1, 0.25], force=True)
    assert paths[1].read_bytes() == by_name
    deltapack.merge(
        paths[0], packs, paths[1], method="ties", weights={packs[0].name: 0.5, str(packs[1]): 1}, density={"math": 0.05}, force=True
    )
    for wrong in ({"nobody": 1}, {"math": 1, "math.dpk": 1}):
        with pytest.raises(RecipeError, match=r"weights name(s)? (no|one) pack"):
            deltapack.merge(paths[0], packs, paths[1], weights=wrong, force=True)
