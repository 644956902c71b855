from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.builders import (
    CHUNK,
    Model,
    Tensor,
    cast,
    decode_by_spec,
    edited,
    leftovers,
    moved,
    random_tensor,
    read_folder,
    read_model,
    small_model,
    tuned_model,
    whole,
    write_file,
    write_folder,
)
from support.fixtures import Merged, PackOf, as_weights
from support.laws import examples
from support.merging import checked

import deltapack
from deltapack import Recipe
from deltapack.errors import BaseMismatchError, FormatError, LimitError, MergeConflictError, OutputError, RecipeError

WEIGHTS = st.floats(-4, 4, width=32)


def by_hand(base: Tensor, packs: Sequence[Path], weights: Sequence[float], name: str) -> Tensor:
    """Task arithmetic on one tensor of f32 or narrower, of packs whose factor is 1, dense and in numpy."""
    total, kept = np.zeros(base.shape, np.float32), np.zeros(base.shape, bool)
    for path, weight in zip(packs, weights, strict=True):
        with deltapack.open_pack(path) as pack:
            positions, values = pack[name].to_sparse()
        with np.errstate(over="ignore", invalid="ignore"):
            total.reshape(-1)[positions] += values * np.float32(weight)
        kept.reshape(-1)[positions] = True
    out = base.bits.copy()
    out[kept] = cast(base.f64.astype(np.float32)[kept] + total[kept], base.dtype).bits
    return Tensor(base.dtype, out)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model, list[Path]]:
    """A base of bf16 and f32 tensors and three packs of it, in `float` codes with factor 1."""
    folder = tmp_path_factory.mktemp("family")
    base = {
        "a": random_tensor(1, (70, 40), "bf16"),
        "b": edited(random_tensor(2, (900,), "f32"), 0, -0.0),
        "c": random_tensor(3, (65_536 + 40,), "bf16"),
        "steps": whole("i64", 4),
    }
    write_file(folder / "base.safetensors", base)
    packs = []
    for number, recipe in enumerate(
        (
            Recipe(drop_rate=0.5, values="bf16", rescale=1),
            Recipe(drop_rate=0.9, values="f32", rescale=1, index="gaps"),
            Recipe(drop_rate=0.0, values="f16"),
        )
    ):
        write_file(folder / "tuned.safetensors", tuned_model(base, 50 + 10 * number))
        packs.append(folder / f"{number}.dpk")
        made = replace(recipe, overrides=as_weights(base))
        deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", packs[-1], recipe=made)
    return folder, base, packs


def merge(folder: Path, packs: Sequence[Path], weights: Sequence[float] | None = None) -> Model:
    out = folder / "merged.safetensors"
    deltapack.merge(folder / "base.safetensors", packs, out, weights=weights, force=True)
    return read_model(out)


def apply(folder: Path, pack: Path, **options: float) -> Model:
    out = folder / "applied.safetensors"
    deltapack.apply(folder / "base.safetensors", pack, out, force=True, **options)  # type: ignore[arg-type]
    return read_model(out)


laws = examples(15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@laws
@given(number=st.integers(0, 2), weight=WEIGHTS)
def test_merging_one_pack_is_applying_it(family: tuple[Path, Model, list[Path]], number: int, weight: float) -> None:
    folder, _, packs = family
    assert merge(folder, [packs[number]], [weight]) == apply(folder, packs[number], weight=weight)


@laws
@given(weights=st.lists(WEIGHTS, min_size=3, max_size=3), order=st.permutations([0, 1, 2]))
def test_merge_is_the_sum_in_the_order_given(family: tuple[Path, Model, list[Path]], weights: list[float], order: list[int]) -> None:
    folder, base, packs = family
    chosen = [packs[number] for number in order]
    result = merge(folder, chosen, weights)
    assert result == {name: tensor if name == "steps" else by_hand(tensor, chosen, weights, name) for name, tensor in base.items()}


@laws
@given(weights=st.lists(WEIGHTS, min_size=2, max_size=2), outer=WEIGHTS)
def test_a_merged_pack_is_the_merge(family: tuple[Path, Model, list[Path]], weights: list[float], outer: float) -> None:
    folder, base, packs = family
    merged, again = folder / "merged.dpk", folder / "again.dpk"
    deltapack.merge(folder / "base.safetensors", packs[:2], merged, weights=weights, force=True)
    direct = merge(folder, packs[:2], weights)
    assert apply(folder, merged) == direct == decode_by_spec(base, merged)
    deltapack.merge(folder / "base.safetensors", [merged, packs[2]], again, weights=[1, outer], force=True)
    assert apply(folder, again) == merge(folder, packs, [*weights, outer]) == decode_by_spec(base, again)
    deltapack.verify(again, folder / "base.safetensors")


def test_weight_zero_gives_the_base(family: tuple[Path, Model, list[Path]]) -> None:
    folder, base, packs = family
    result = merge(folder, packs, [0, 0, 0])
    # A kept element becomes base + 0.0, which is the base but for the sign of zero.
    assert all(np.array_equal(result[name].f64, base[name].f64) for name in base)
    assert {name: tensor for name, tensor in result.items() if name != "b"} == {n: t for n, t in base.items() if n != "b"}


def test_one_weight_is_for_all(family: tuple[Path, Model, list[Path]]) -> None:
    folder, _, packs = family
    assert merge(folder, packs, [0.25]) == merge(folder, packs, [0.25] * 3)
    assert merge(folder, packs) == merge(folder, packs, [1] * 3)
    report = deltapack.merge(folder / "base.safetensors", packs, folder / "x.safetensors", force=True)
    assert report.weights == [(str(path), 1.0) for path in packs]
    assert any("add up to 3" in warning for warning in report.warnings)


def test_workers_do_not_matter(family: tuple[Path, Model, list[Path]]) -> None:
    folder, _, packs = family
    data = []
    for workers in (1, 4):
        out = folder / f"{workers} workers.dpk"
        deltapack.merge(folder / "base.safetensors", packs, out, weights=[0.5, 0.2, 0.1], workers=workers, force=True)
        data.append(out.read_bytes())
    assert data[0] == data[1]


def test_packs_with_one_mask_are_pointed_out(tmp_path: Path) -> None:
    base = small_model()
    write_file(tmp_path / "base.safetensors", base)
    write_file(tmp_path / "tuned.safetensors", tuned_model(base))
    for values in ("int4", "int8"):
        inputs = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
        deltapack.compress(*inputs, tmp_path / f"{values}.dpk", recipe=Recipe(values=values, overrides=as_weights(base)))
    packs = [tmp_path / "int4.dpk", tmp_path / "int8.dpk"]
    report = deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "out", weights=[0.5, 0.5])
    assert any("same positions" in warning for warning in report.warnings)


def f32_sum(base: Tensor, *steps: tuple[float, Tensor]) -> Tensor:
    """base + sum of weight * (tuned - base), all in f32 and in this order."""
    start, total = base.f64.astype(np.float32), np.zeros(base.shape, np.float32)
    for weight, tuned in steps:
        total += (tuned.f64.astype(np.float32) - start) * np.float32(weight)
    return cast(start + total, base.dtype)


@pytest.mark.parametrize(("dtype", "length"), [("f32", 900), ("bf16", 900), ("bf16", CHUNK + 9)])
def test_tensors_stored_whole_add_as_differences(dtype: str, length: int, pack_of: PackOf, tmp_path: Path) -> None:
    """Of two chunks only in one type: borders are the same in all, and the reference decoder takes seconds for a chunk."""
    base = {"x": random_tensor(1, (length,), dtype), "y": random_tensor(2, (3,), dtype)}
    one, other = tuned_model(base, 10), tuned_model(base, 20)
    packs = [pack_of(base, one, "one", exclude="x"), pack_of(base, other, "other", exclude="x")]
    result = checked(tmp_path, base, packs, weights=[0.75, 0.5])
    assert result == {name: f32_sum(base[name], (0.75, one[name]), (0.5, other[name])) for name in base}
    assert checked(tmp_path, base, packs[:1], weights=[0.75])["x"] == f32_sum(base["x"], (0.75, one["x"]))
    assert checked(tmp_path, base, packs[:1])["x"] == one["x"]


def test_stored_and_dropped_add(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"x": random_tensor(1, (900,), "bf16")}
    one, other = tuned_model(base, 10), tuned_model(base, 20)
    packs = [pack_of(base, one, "one", exclude="x"), pack_of(base, other, "other", drop_rate=0.5, values="f32", rescale=1)]
    with deltapack.open_pack(packs[1]) as pack:
        kept = np.isin(np.arange(900), pack["x"].to_sparse()[0])
    dropped = Tensor("bf16", np.where(kept, other["x"].bits, base["x"].bits))
    result = checked(tmp_path, base, packs, weights=[0.5, 0.25])
    assert result["x"] == f32_sum(base["x"], (0.5, one["x"]), (0.25, dropped))


def grown(base: Tensor, rows: int, seed: int) -> Tensor:
    more = random_tensor(seed, (rows, *base.shape[1:]), base.dtype)
    more.bits[: base.shape[0]] = moved(base, seed).bits
    return more


def test_one_pack_grows_a_tensor(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"e": random_tensor(1, (90, 20), "bf16")}
    one, other = {"e": grown(base["e"], 100, 5)}, tuned_model(base, 20)
    exact: dict[str, Any] = {"drop_rate": 0, "values": "f32"}
    packs = [pack_of(base, one, "one", **exact), pack_of(base, other, "other", **exact)]
    for order, weights in ((packs, (0.5, 0.25)), (packs[::-1], (0.25, 0.5))):
        steps = [(0.5, Tensor("bf16", one["e"].bits[:90])), (0.25, other["e"])]
        result = checked(tmp_path, base, order, weights=weights)["e"]
        assert np.array_equal(result.bits[90:], one["e"].bits[90:])
        assert np.array_equal(result.bits[:90], f32_sum(base["e"], *steps[:: 1 if order is packs else -1]).bits)


def test_what_another_pack_stores_is_not_lost_where_a_tensor_grows(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"e": random_tensor(1, (90, 20), "bf16")}
    one, other = {"e": grown(base["e"], 100, 5)}, tuned_model(base, 20)
    packs = [pack_of(base, one, "one", drop_rate=0, values="f32"), pack_of(base, other, "other", exclude="e")]
    result = checked(tmp_path, base, packs, weights=[0.5, 0.25])["e"]
    wanted = f32_sum(base["e"], (0.5, Tensor("bf16", one["e"].bits[:90])), (0.25, other["e"]))
    assert np.array_equal(result.bits[:90], wanted.bits)
    assert np.array_equal(result.bits[90:], one["e"].bits[90:])


def test_two_packs_grow_a_tensor(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"e": random_tensor(1, (90, 20), "bf16")}
    packs = [pack_of(base, {"e": grown(base["e"], rows, rows)}, f"{rows}") for rows in (100, 120)]
    with pytest.raises(MergeConflictError) as error:
        checked(tmp_path, base, packs)
    assert error.value.tensor == "e" and "--vocab union" in str(error.value)
    assert not (tmp_path / "merged.safetensors").exists() and not leftovers(tmp_path)
    for pack, rows in zip(packs, (100, 120), strict=True):
        result = checked(tmp_path, base, packs, prefer=pack)["e"]
        assert result.shape == (rows, 20)
        assert np.array_equal(result.bits[90:], read_model(tmp_path / f"{rows}.safetensors")["e"].bits[90:])


def test_one_pack_shrinks_a_tensor(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"e": random_tensor(1, (90, 20)), "f": random_tensor(2, (300,))}
    less = {"e": moved(Tensor("f32", base["e"].bits[:80]), 3), "f": moved(base["f"], 4)}
    packs = [pack_of(base, less, "one"), pack_of(base, tuned_model(base, 20), "other")]
    with pytest.raises(MergeConflictError):
        checked(tmp_path, base, packs)
    assert checked(tmp_path, base, packs, prefer=packs[0])["e"].shape == (80, 20)
    assert checked(tmp_path, base, packs, prefer=packs[1])["e"].shape == (90, 20)


def test_new_heads(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    head, head2 = random_tensor(4, (5, 5)), random_tensor(5, (5, 5))
    packs = [
        pack_of(base, tuned_model(base, 1) | {"head": head, "only one": head}, "one"),
        pack_of(base, tuned_model(base, 2) | {"head": head2}, "two"),
        pack_of(base, tuned_model(base, 3) | {"head": head}, "three"),
    ]
    with pytest.raises(MergeConflictError):
        checked(tmp_path, base, packs)
    assert checked(tmp_path, base, packs, prefer=packs[1])["head"] == head2
    result = checked(tmp_path, base, [packs[0], packs[2]], weights=[0.5])
    assert (result["head"], result["only one"]) == (head, head)


def test_integers_that_changed(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"steps": whole("i64", 1), "x": random_tensor(1, (300,))}
    one, two, same = ({"steps": whole("i64", n), "x": moved(base["x"], n)} for n in (2, 3, 1))
    packs = [pack_of(base, tuned, f"{number}") for number, tuned in enumerate((one, two, same))]
    with pytest.raises(MergeConflictError) as error:
        checked(tmp_path, base, packs)
    assert error.value.tensor == "steps"
    assert checked(tmp_path, base, packs, prefer=packs[1])["steps"] == whole("i64", 3)
    assert checked(tmp_path, base, [packs[0], packs[2]])["steps"] == whole("i64", 2)


def test_tensors_removed_by_some(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model() | {"mlm": random_tensor(9, (30, 10)), "gone": random_tensor(9, (30, 10))}
    without = {name: tensor for name, tensor in tuned_model(base, 1).items() if name not in ("mlm", "gone")}
    kept = {name: tensor for name, tensor in tuned_model(base, 2).items() if name != "gone"}
    packs = [pack_of(base, without, "without"), pack_of(base, kept, "kept", drop_rate=0, values="f32")]
    for order in (packs, packs[::-1]):
        assert checked(tmp_path, base, order).keys() == base.keys() - {"gone"}
    assert checked(tmp_path, base, [packs[0], packs[0]]).keys() == base.keys() - {"mlm", "gone"}
    assert checked(tmp_path, base, packs[:1]).keys() == without.keys()


def test_other_result_types(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"x": random_tensor(1, (900,), "bf16"), "y": random_tensor(2, (900,), "bf16")}
    one = {"x": moved(base["x"], 3, dtype="f32"), "y": moved(base["y"], 4, dtype="f32")}
    other = {"x": moved(base["x"], 5, dtype="f16"), "y": moved(base["y"], 6, dtype="f32")}
    result = checked(tmp_path, base, [pack_of(base, one, "one"), pack_of(base, other, "other")], weights=[0.5])
    assert (result["x"].dtype, result["y"].dtype) == ("bf16", "f32")  # where packs disagree, the base's


def test_packs_that_name_tensors_differently(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    prefixed = {f"bert.{name}": tensor for name, tensor in tuned_model(base, 1).items()}
    packs = [pack_of(base, prefixed, "one"), pack_of(base, tuned_model(base, 2), "other")]
    assert checked(tmp_path, base, packs, weights=[0.5]).keys() == base.keys()
    assert checked(tmp_path, base, packs, weights=[0.5], prefer=packs[0]).keys() == prefixed.keys()
    again = pack_of(base, {f"bert.{name}": tensor for name, tensor in tuned_model(base, 3).items()}, "again")
    assert checked(tmp_path, base, [packs[0], again], weights=[0.5]).keys() == prefixed.keys()


def test_a_tensor_stored_under_another_name_can_be_merged(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    tuned = {f"bert.{name}": tensor for name, tensor in tuned_model(base, 1).items()}
    pack = pack_of(base, tuned, "one", exclude="bias")
    assert checked(tmp_path, base, [pack])["bert.layer.bias"] == tuned["bert.layer.bias"]
    assert checked(tmp_path, base, [pack], weights=[0.5]).keys() == tuned.keys()


def test_packs_of_other_bases(pack_of: PackOf, tmp_path: Path) -> None:
    base, other = small_model(0), small_model(7)
    packs = [pack_of(other, tuned_model(other), "other"), pack_of(base, tuned_model(base), "own")]
    with pytest.raises(BaseMismatchError, match="different bases"):
        deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


def test_bad_arguments(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    pack = pack_of(base, tuned_model(base))
    for options, error in (
        ({"packs": []}, RecipeError),
        ({"weights": [1, 2]}, RecipeError),
        ({"weights": [float("nan")]}, RecipeError),
        ({"method": "magic"}, RecipeError),
        ({"prefer": tmp_path / "no.dpk"}, RecipeError),
        ({"dtype": "i8"}, RecipeError),
        ({"packs": [tmp_path / "no.dpk"]}, FormatError),
        ({"packs": [tmp_path / "base.safetensors"]}, FormatError),
        ({"out": tmp_path / "out.dpk", "dtype": "bf16"}, RecipeError),
        ({"out": tmp_path / "out.dpk", "max_shard_size": 100}, RecipeError),
        ({"out": pack, "force": True}, OutputError),
        ({"out": tmp_path / "base.safetensors", "force": True}, OutputError),
    ):
        with pytest.raises(error):
            deltapack.merge(**{"base": tmp_path / "base.safetensors", "packs": [pack], "out": tmp_path / "out"} | options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.dpk").exists() and not leftovers(tmp_path)


def test_more_terms_than_a_pack_may_have(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"x": random_tensor(1, (300,))}
    packs = [pack_of(base, tuned_model(base, 1))] * 65
    with pytest.raises(LimitError, match="too many packs"):
        deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "merged.dpk")
    assert not (tmp_path / "merged.dpk").exists() and not leftovers(tmp_path)
    deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "merged.safetensors", weights=[1 / 65])
    checked(tmp_path, base, packs[:64], weights=[1 / 64])


def test_a_merged_pack_cannot_be_rescaled(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"x": random_tensor(1, (300,))}
    packs = [pack_of(base, tuned_model(base, 1), "1"), pack_of(base, tuned_model(base, 2), "2")]
    for chosen in (packs, packs[:1]):
        deltapack.merge(tmp_path / "base.safetensors", chosen, tmp_path / "merged.dpk", weights=[0.5], force=True)
        with pytest.raises(RecipeError, match="cannot be rescaled"):
            deltapack.apply(tmp_path / "base.safetensors", tmp_path / "merged.dpk", tmp_path / "out", rescale=2)


# ------------------------------------------------------------------------------------------------------ side files


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base folder and packs of three fine-tunes: `other` and `third` change files, `grown` its vocabulary, too."""
    base = small_model()
    write_folder(tmp_path / "base", base, {"tokenizer.json": "0", "vocab.txt": "v"})
    more = tuned_model(base, 2) | {"embed.weight": grown(base["embed.weight"], 80, 4)}
    for name, tuned, files in (
        ("grown", more, {"tokenizer.json": "1", "vocab.txt": "v"}),
        ("other", tuned_model(base, 3), {"tokenizer.json": "2", "vocab.txt": "v"}),
        ("third", tuned_model(base, 4), {"tokenizer.json": "2", "vocab.txt": "v"}),
    ):
        write_folder(tmp_path / name, tuned, files)
        deltapack.compress(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.dpk")
    return tmp_path / "base", [tmp_path / f"{name}.dpk" for name in ("grown", "other", "third")]


@pytest.mark.parametrize(
    ("numbers", "prefer", "tokenizer"),
    [((0, 1), None, "1"), ((0, 1), 1, "2"), ((1, 2), None, "2"), ((0,), None, "1"), ((1, 2, 0), 0, "1")],
)
def test_side_files(folders: tuple[Path, list[Path]], tmp_path: Path, numbers: tuple[int, ...], prefer: int | None, tokenizer: str) -> None:
    base, packs = folders
    chosen, preferred = [packs[n] for n in numbers], None if prefer is None else packs[prefer]
    deltapack.merge(base, chosen, tmp_path / "direct", weights=[0.5], prefer=preferred)
    deltapack.merge(base, chosen, tmp_path / "merged.dpk", weights=[0.5], prefer=preferred)
    deltapack.apply(base, tmp_path / "merged.dpk", tmp_path / "applied")
    assert read_folder(tmp_path / "direct") == read_folder(tmp_path / "applied")
    assert (tmp_path / "direct" / "tokenizer.json").read_text() == tokenizer
    assert (tmp_path / "direct" / "vocab.txt").read_text() == "v"


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_whose_vocabulary_the_result_has(tmp_path: Path, method: str) -> None:
    """Old rows get what every pack says, whoever decides on the new ones; tokenizer and rows belong together."""
    base = small_model()
    write_folder(tmp_path / "base", base, {"tokenizer.json": "0"})
    packs = {}
    for number, (name, rows) in enumerate({"one": 80, "two": 90, "none": 70}.items()):
        tuned = tuned_model(base, number) | {"embed.weight": grown(base["embed.weight"], rows, number)}
        write_folder(tmp_path / name, tuned, {"tokenizer.json": name})
        packs[name] = tmp_path / f"{name}.dpk"
        recipe = Recipe(drop_rate=0.9, overrides=as_weights(base))
        deltapack.compress(tmp_path / "base", tmp_path / name, packs[name], recipe=recipe)
    found = {}
    for vocab, rows in {"base": 70, "one": 80, "two": 90, "none": 70}.items():
        out = tmp_path / f"out-{vocab}"
        options: dict[str, Any] = {"vocab": packs.get(vocab, vocab), "method": method}
        report = deltapack.merge(tmp_path / "base", list(packs.values()), out, **options)
        preview = deltapack.preview_merge(
            tmp_path / "base", list(packs.values()), tmp_path / "x", vocab=options["vocab"], recipe=deltapack.MergeRecipe(method)
        )
        assert preview.grown == ([("embed.weight", 70, rows)] if rows > 70 else [])
        asked: dict[str, Any] = {"recipe": deltapack.MergeRecipe(method), "vocab": options["vocab"]}
        survey = deltapack.survey_merge(tmp_path / "base", list(packs.values()), **asked)
        explained = deltapack.explain_merge(tmp_path / "base", list(packs.values()), "embed.weight", **asked)
        assert explained.result == read_model(out)["embed.weight"].bits.reshape(-1)[explained.element]
        again = deltapack.merge(tmp_path / "base", list(packs.values()), tmp_path / "merged.dpk", force=True, report=True, **options)
        assert again.survey == survey
        deltapack.apply(tmp_path / "base", tmp_path / "merged.dpk", tmp_path / "applied", force=True)
        found[vocab] = read_model(out)
        assert read_model(tmp_path / "applied") == found[vocab]
        assert (out / "tokenizer.json").read_text() == {"base": "0"}.get(vocab, vocab)
        assert found[vocab]["embed.weight"].shape[0] == rows
        assert found[vocab]["embed.weight"].bits[:70].tobytes() == found["base"]["embed.weight"].bits.tobytes()
        (warning,) = report.warnings
        sentence = {"linear": "add up to 3 (1 for each of 3 packs): ", "ties": "90 % of the changed elements are kept by one pack only"}
        assert sentence[method] in warning
    with pytest.raises(RecipeError, match="vocab"):
        deltapack.merge(tmp_path / "base", list(packs.values()), tmp_path / "y", vocab=tmp_path / "base")
    with pytest.raises(MergeConflictError):
        deltapack.merge(tmp_path / "base", list(packs.values()), tmp_path / "y")


def test_side_files_that_differ_are_the_bases(tmp_path: Path) -> None:
    base = small_model()
    write_folder(tmp_path / "base", base, {"tokenizer.json": "0"})
    for name in ("one", "two"):
        write_folder(tmp_path / name, tuned_model(base, ord(name[0])), {"tokenizer.json": name})
        deltapack.compress(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.dpk")
    packs = [tmp_path / "one.dpk", tmp_path / "two.dpk"]
    report = deltapack.merge(tmp_path / "base", packs, tmp_path / "out", weights=[0.5])
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "0"
    assert report.notes == [
        "the packs carry different config or tokenizer files (tokenizer.json); the base's are used, --prefer PACK changes that"
    ]


def test_texts_for_people_may_differ(tmp_path: Path) -> None:
    """Cards and licences are no config or tokenizer; the files that matter are all packs'."""
    base = small_model()
    write_folder(tmp_path / "base", base, {"tokenizer.json": "0"})
    for name in ("one", "two"):
        files = {"tokenizer.json": "1", "README.md": name, "LICENSE.txt": name, "docs/notes.md": name}
        write_folder(tmp_path / name, tuned_model(base, ord(name[0])), files)
        deltapack.compress(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.dpk")
    report = deltapack.merge(tmp_path / "base", [tmp_path / "one.dpk", tmp_path / "two.dpk"], tmp_path / "out", weights=[0.5])
    assert not report.notes
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "1" and (tmp_path / "out" / "LICENSE.txt").read_text() == "one"


def test_a_stored_tensor_under_another_name_is_merged(pack_of: PackOf, merged: Merged) -> None:
    # Found by a test: the merge held the tensor under both names.
    base = {"x.w": random_tensor(1, (40, 30), "f32"), "x.v": random_tensor(2, (40, 30), "f32")}
    plain, tuned = (tuned_model(base, seed) for seed in (3, 4))
    renamed = {f"bert.{name}": tensor for name, tensor in tuned.items()}
    one = pack_of(base, plain, "one")
    found = merged([one, pack_of(base, renamed, "two", exclude="w$")])
    wanted = merged([one, pack_of(base, tuned, "three", exclude="w$")])
    assert found.keys() == base.keys()
    assert found["x.w"] == wanted["x.w"]
