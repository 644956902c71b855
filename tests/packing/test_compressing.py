from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import (
    CHUNK,
    ROOT,
    TILE,
    Model,
    cast,
    edited,
    leftovers,
    moved,
    random_tensor,
    read_model,
    small_model,
    tuned_model,
    whole,
    write_file,
    write_folder,
)
from support.fixtures import Applied, PackOf, as_weights

import deltapack
from deltapack import Override, Recipe
from deltapack.errors import CheckpointError, NonFiniteError, OutputError, RecipeError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.packing.recipe import INDEX_CHOICES


def positions(pack: Path, name: str) -> list[int]:
    with deltapack.open_pack(pack) as opened:
        return list(map(int, opened[name].to_sparse()[0]))


def large_model() -> Model:
    """Sizes around the borders of tiles and chunks."""
    return {
        "chunk": random_tensor(1, (CHUNK,), "bf16"),
        "chunk+1": random_tensor(2, (CHUNK + 1,), "bf16"),
        "tile": random_tensor(3, (TILE,), "f16"),
        "tile+1": random_tensor(4, (TILE + 1,), "f16"),
        "tile-1": random_tensor(5, (TILE - 1,), "f32"),
        "two chunks": random_tensor(6, (2 * CHUNK + 77,), "f16"),
    }


def test_the_bytes_do_not_depend_on_workers(pack_of: PackOf) -> None:
    base = large_model()
    tuned = tuned_model(base)
    digests = {hashlib.sha256(pack_of(base, tuned, workers=n, force=True).read_bytes()).digest() for n in (1, 2, 5)}
    assert len(digests) == 1


def test_the_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    base = small_model()
    write_folder(tmp_path / "base", base, {"tokenizer.json": "{}"})
    write_folder(tmp_path / "tuned", tuned_model(base), {"tokenizer.json": "{1}", "notes.txt": "x", "vocab.txt": "y"})
    code = "import sys, deltapack; deltapack.compress(*sys.argv[1:4])"
    packs = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.dpk"
        command = [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "tuned"), str(out)]
        subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONHASHSEED": seed, "PATH": ""})
        packs.append(out.read_bytes())
    assert packs[0] == packs[1]


def test_masks_differ_by_seed_fine_tune_and_tensor_and_only_by_these(pack_of: PackOf) -> None:
    base = {"a": random_tensor(1, (9000,)), "b": random_tensor(2, (9000,))}
    one, other = tuned_model(base, 1), tuned_model(base, 2)
    masks = [
        positions(pack_of(base, one, "one", seed=0), "a"),
        positions(pack_of(base, one, "one", seed=0, force=True), "b"),
        positions(pack_of(base, one, "seed", seed=1), "a"),
        positions(pack_of(base, one, "negative seed", seed=-1), "a"),
        positions(pack_of(base, other, "other", seed=0), "a"),
    ]
    for number, mask in enumerate(masks):
        assert abs(len(mask) - 900) < 150
        for rest in masks[number + 1 :]:
            # Independent masks of density 0.1 share one element in a hundred: 90 of 9000, within 6 sigma.
            assert 30 < len(set(mask) & set(rest)) < 150
    assert positions(pack_of(base, one, "again", seed=0, values="f32", index="gaps"), "a") == masks[0]


def test_seeded_gaps_and_bitmap_of_one_seed_give_the_same_model(pack_of: PackOf, applied: Applied) -> None:
    base = {"a": random_tensor(1, (CHUNK + TILE + 5,), "bf16"), "b": random_tensor(2, (90, 11))}
    tuned = tuned_model(base)
    ways = [index for index in INDEX_CHOICES if index != "stratified"]  # which draws another mask
    for rate in (0.3, 0.9, 0.99):
        results = [applied(pack_of(base, tuned, index, index=index, drop_rate=rate, values="int4", force=True)) for index in ways]
        assert all(result == results[0] for result in results)


def test_sizes_add_up_and_are_near_the_limit(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"w": random_tensor(1, (2 * CHUNK,), "bf16"), "head": random_tensor(2, (300,))}
    tuned = {"w": moved(base["w"], 3, 0.001), "head": random_tensor(9, (10, 10))}
    for rate, limit in ((0.9, 0.46), (0.99, 0.05)):
        pack_of(base, tuned)
        report = deltapack.compress(
            tmp_path / "base.safetensors",
            tmp_path / "pack.safetensors",
            tmp_path / "pack.dpk",
            recipe=Recipe(drop_rate=rate, values="int4", index="seeded"),
            force=True,
        )
        (tmp_path / "pack.dpk").rename(tmp_path / f"{rate}.dpk")
        assert report.pack_bytes == (tmp_path / f"{rate}.dpk").stat().st_size == sum(report.split.values())
        assert report.checkpoint_bytes == 2 * 2 * CHUNK + 400
        assert report.delta_elements == 2 * CHUNK
        assert report.split["index"] == 0
        assert report.delta_bits_per_weight == 8 * (report.pack_bytes - report.split["stored"]) / (2 * CHUNK)
        assert report.delta_bits_per_weight <= limit


def test_the_report_counts_kinds_and_warns_of_large_deltas(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    tuned = tuned_model(base, scale=0.0005)
    tuned["layer.bias"] = edited(tuned["layer.bias"], 5, np.float32(3))
    pack_of(base, tuned)
    paths = tmp_path / "base.safetensors", tmp_path / "pack.safetensors", tmp_path / "pack.dpk"
    report = deltapack.compress(*paths, recipe=Recipe(drop_rate=0.9, overrides=as_weights(tuned)), force=True)
    assert report.kinds == {"delta": 3, "unchanged": 1}
    assert report.worst[0] == ("layer.bias", report.max_abs_delta)
    assert np.float32(report.max_abs_delta) == np.float32(f"{abs(3 - base['layer.bias'].f64[5]):.7g}")
    assert "layer.bias" in report.warnings[0] and "layer.weight" not in report.warnings[0]
    assert report.to_json()["pack"] == str(tmp_path / "pack.dpk")
    assert not deltapack.compress(*paths, recipe=Recipe(drop_rate=0, overrides=as_weights(tuned)), force=True).warnings


def test_the_best_codec_depends_on_what_dropping_costs(pack_of: PackOf) -> None:
    base = {"w": random_tensor(1, (5000,))}
    tuned = tuned_model(base, scale=0.001)

    def chosen(**recipe: Any) -> str:
        with deltapack.open_pack(pack_of(base, tuned, force=True, **recipe)) as pack:
            return pack.index.entries[0].terms[0].values

    smallest_first = list(VALUE_CODECS)[::-1]
    picked = [chosen(drop_rate=0.9, fidelity=fidelity) for fidelity in (0.9, 0.05, 0.005, 1e-9)]
    assert picked == sorted(picked, key=smallest_first.index) and picked[0] == "int2" and picked[-1] == "int8"
    assert chosen(drop_rate=0, fidelity=0.05) == "int8"


def test_overrides_include_and_exclude(pack_of: PackOf, applied: Applied) -> None:
    base = small_model()
    tuned = tuned_model(base)
    overrides = (
        Override(r"layer\..*", drop_rate=0.5, values="f32"),
        Override(r"layer\.bias", values="bf16", index="bitmap", rescale=1),
    )
    with deltapack.open_pack(pack_of(base, tuned, values="int4", overrides=overrides)) as pack:
        terms = {name: entry.entry.terms[0] for name, entry in pack.items() if entry.entry.terms}
    assert {name: term.values for name, term in terms.items()} == {
        "embed.weight": "int4",
        "layer.bias": "bf16",
        "layer.weight": "f32",
    }
    assert (terms["layer.bias"].index, terms["layer.bias"].factor) == ("bitmap", 1)
    assert (terms["layer.weight"].keep, terms["layer.weight"].factor) == (1 << 31, 2)
    choices: list[dict[str, Any]] = [{"include": "weight"}, {"exclude": "bias"}, {"exclude": "^layer.bias$"}]
    for number, choice in enumerate(choices):
        pack_path = pack_of(base, tuned, f"choice {number}", **choice)
        with deltapack.open_pack(pack_path) as pack:
            assert {name: entry.kind for name, entry in pack.items()} == {
                "embed.weight": "delta",
                "layer.bias": "exact",
                "layer.weight": "delta",
                "positions": "unchanged",
            }
        assert applied(pack_path)["layer.bias"] == tuned["layer.bias"]
    with deltapack.open_pack(pack_of(base, base, exclude="", force=True)) as pack:
        assert {entry.kind for entry in pack.values()} == {"unchanged"}


@pytest.mark.parametrize(
    "recipe",
    [
        {"drop_rate": 1.0},
        {"drop_rate": -0.1},
        {"drop_rate": float("nan")},
        {"values": "int0"},
        {"index": "coo"},
        {"rescale": float("inf")},
        {"seed": 1 << 63},
        {"seed": True},
        {"fidelity": 0},
        {"include": "("},
        {"exclude": "("},
        {"non_finite": "drop"},
        {"overrides": (Override("("),)},
        {"overrides": (Override("x", drop_rate=2),)},
    ],
)
def test_bad_recipes(recipe: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        Recipe(**recipe)  # type: ignore[arg-type]


def test_seeded_without_dropping_is_an_error_that_leaves_nothing(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    with pytest.raises(RecipeError, match="index=seeded"):
        pack_of(base, tuned_model(base), drop_rate=0, index="seeded")
    assert not (tmp_path / "pack.dpk").exists() and not leftovers(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, CHUNK + 5])
def test_non_finite_fine_tune(pack_of: PackOf, applied: Applied, tmp_path: Path, value: float, where: int) -> None:
    base = {"ok": random_tensor(1, (500,)), "w": random_tensor(2, (CHUNK + 9,), "f16")}
    tuned = tuned_model(base)
    tuned["w"] = edited(tuned["w"], where, np.float16(value))
    with pytest.raises(NonFiniteError) as error:
        pack_of(base, tuned)
    assert error.value.tensor == "w" and "non-finite store" in str(error.value)
    assert not (tmp_path / "pack.dpk").exists() and not leftovers(tmp_path)
    result = applied(pack_of(base, tuned, non_finite="store"))
    assert result["w"] == tuned["w"]
    with deltapack.open_pack(tmp_path / "pack.dpk") as pack:
        assert (pack["w"].kind, pack["ok"].kind) == ("exact", "delta")


def test_non_finite_elements_that_did_not_change_are_fine(pack_of: PackOf, applied: Applied) -> None:
    base = {"w": edited(edited(random_tensor(2, (500,)), 3, np.nan), 4, np.inf)}
    assert applied(pack_of(base, base)) == base


def test_non_finite_base(pack_of: PackOf, applied: Applied) -> None:
    tuned = {"w": random_tensor(2, (500,))}
    base = {"w": edited(tuned["w"], 3, np.nan)}
    with pytest.raises(NonFiniteError):
        pack_of(base, tuned)
    assert applied(pack_of(base, tuned, non_finite="store")) == tuned


def test_rescale_that_overflows(pack_of: PackOf, applied: Applied) -> None:
    base = {"w": cast(np.zeros(2000), "f16")}
    tuned = {"w": cast(np.full(2000, 10000.0), "f16")}
    with pytest.raises(NonFiniteError, match="overflows when rescaled") as error:
        pack_of(base, tuned, drop_rate=0.9)
    assert error.value.tensor == "w" and "a lower drop rate or --set 'w:drop-rate=0.5'" in str(error.value)
    with pytest.raises(NonFiniteError, match="a smaller factor or --set 'w:rescale=1'"):
        pack_of(base, tuned, "all", drop_rate=0, rescale=9)
    assert applied(pack_of(base, tuned, "store", drop_rate=0.9, non_finite="store")) == tuned
    assert applied(pack_of(base, tuned, "half", drop_rate=0.0, values="f32"))["w"] == tuned["w"]


def test_codes_that_overflow(pack_of: PackOf, applied: Applied) -> None:
    base, tuned = {"w": cast(np.full(2000, 64_000.0), "f16")}, {"w": cast(np.full(2000, 65_504.0), "f16")}
    with pytest.raises(NonFiniteError, match="finer values or --set 'w:values=f32'"):  # 1504 has no scale of its own: it becomes 1536
        pack_of(base, tuned, drop_rate=0, values="sign")
    assert applied(pack_of(base, tuned, "exact", drop_rate=0, values="f32"))["w"] == tuned["w"]


def test_differences_that_overflow(pack_of: PackOf, applied: Applied) -> None:
    base = {"w": cast(np.full(2000, -3e38), "f32")}
    tuned = {"w": cast(np.full(2000, 3e38), "f32")}
    for values in ("auto", "f32", "int4"):
        with pytest.raises(NonFiniteError) as error:
            pack_of(base, tuned, values=values, allow_unrelated=True, force=True)
        assert error.value.tensor == "w"
        assert applied(pack_of(base, tuned, values=values, allow_unrelated=True, non_finite="store", force=True)) == tuned
    base, tuned = {"w": cast(np.zeros(2000), "f32")}, {"w": cast(np.full(2000, 1e6), "f32")}
    with pytest.raises(NonFiniteError) as error:
        pack_of(base, tuned, values="f16", force=True)
    assert error.value.tensor == "w"
    assert applied(pack_of(base, tuned, drop_rate=0, values="bf16", force=True)).keys() == {"w"}


def test_an_existing_output_is_kept_without_force(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    first = pack_of(base, tuned_model(base, 1)).read_bytes()
    with pytest.raises(OutputError, match="exists"):
        pack_of(base, tuned_model(base, 2))
    assert (tmp_path / "pack.dpk").read_bytes() == first
    assert pack_of(base, tuned_model(base, 2), force=True).read_bytes() != first


def test_the_output_is_never_an_input(tmp_path: Path) -> None:
    base = write_file(tmp_path / "base.safetensors", small_model())
    tuned = write_file(tmp_path / "tuned.safetensors", tuned_model(small_model()))
    before = base.read_bytes(), tuned.read_bytes()
    for out in (base, tuned):
        with pytest.raises(RecipeError, match=r"cannot be a \.safetensors file"):
            deltapack.compress(base, tuned, out, force=True)
        (tmp_path / "link.dpk").unlink(missing_ok=True)
        (tmp_path / "link.dpk").symlink_to(out)
        with pytest.raises(OutputError, match="one of the inputs"):
            deltapack.compress(base, tuned, tmp_path / "link.dpk", force=True)
    (tmp_path / "folder.dpk").mkdir()
    with pytest.raises(OutputError, match="folder"):
        deltapack.compress(base, tuned, tmp_path / "folder.dpk", force=True)
    with pytest.raises(OutputError, match="does not exist"):
        deltapack.compress(base, tuned, tmp_path / "no" / "out.dpk")
    assert (base.read_bytes(), tuned.read_bytes()) == before


def test_inputs_that_are_no_checkpoints(tmp_path: Path) -> None:
    good = write_file(tmp_path / "good.safetensors", small_model())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-1])
    text = tmp_path / "text.safetensors"
    text.write_text("hello " * 100)
    for bad in (cut, text, tmp_path / "missing", tmp_path):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(CheckpointError):
                deltapack.compress(*pair, tmp_path / "out.dpk")
    assert not (tmp_path / "out.dpk").exists() and not leftovers(tmp_path)


def test_progress_rises_to_the_total(tmp_path: Path, pack_of: PackOf) -> None:
    base = small_model() | {"empty": whole("i32", np.zeros(0))}
    pack_of(base, tuned_model(base))
    calls: list[tuple[int, int]] = []
    paths = tmp_path / "base.safetensors", tmp_path / "pack.safetensors", tmp_path / "pack.dpk"
    total = sum(len(tensor.raw) for tensor in base.values())
    for recipe in (Recipe(drop_rate=0.9), Recipe(exact=True)):  # one pass; test_budgets.py has those of budgets
        calls.clear()
        deltapack.compress(*paths, recipe=recipe, force=True, progress=lambda done, total: calls.append((done, total)))
        assert calls == sorted(calls) and calls[-1] == (total, total) and len({row[1] for row in calls}) == 1


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_out_of_range(pack_of: PackOf, workers: int) -> None:
    with pytest.raises(RecipeError, match="workers"):
        pack_of(small_model(), small_model(), workers=workers)


def test_stored_gaps_of_a_dense_mask_are_a_bitmap(pack_of: PackOf) -> None:
    base = {"w": random_tensor(1, (300, 400), "f32")}
    with deltapack.open_pack(pack_of(base, tuned_model(base), drop_rate=0.5, index="gaps")) as pack:
        (term,) = pack["w"].entry.terms
        assert term.index == "bitmap"
    with deltapack.open_pack(pack_of(base, tuned_model(base), "sparser", drop_rate=0.8, index="gaps")) as pack:
        (term,) = pack["w"].entry.terms
        assert (term.index, term.shift) == ("gaps", 0)


@pytest.mark.parametrize("outlier", [1.0, 8.0, 1000.0])
def test_an_outlier_does_not_cost_the_rest_of_a_vector(tmp_path: Path, outlier: float) -> None:
    base = {"norm.weight": random_tensor(1, (400,))}
    tuned = {"norm.weight": moved(base["norm.weight"], 2, 1e-3)}
    tuned["norm.weight"].bits[7] += np.float32(outlier)
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    deltapack.compress(*paths, tmp_path / "x.dpk")
    deltapack.apply(paths[0], tmp_path / "x.dpk", tmp_path / "out.safetensors")
    rest = np.arange(400) != 7
    wanted = (tuned["norm.weight"].f64 - base["norm.weight"].f64)[rest]
    found = (read_model(tmp_path / "out.safetensors")["norm.weight"].f64 - base["norm.weight"].f64)[rest]
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
