"""Adapters merged into a base without PEFT: every element against numpy in f64, in any pieces; and what a pack of one restores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapters import COLUMNS, ROWS, START, WORDS, base_model, lora, merged, write_adapter
from support.builders import Model, Tensor, cast, random_tensor, read_folder, read_model, tuned_model, write_file, write_folder

import deltapack
from deltapack import Recipe
from deltapack.adapters import is_adapter, open_adapted
from deltapack.adapters.merging import KeptUpdates
from deltapack.adapters.updates import LowRank
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import BaseMismatchError, NotACheckpointError, RecipeError, UnsupportedError

Array = np.ndarray[Any, np.dtype[np.float64]]


def check(found: Tensor, exact: Array, terms: float = 0.5) -> None:
    """Within half a step of the type, and what sums of f32 products of this size lose."""
    half = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}[found.dtype]
    bound = np.abs(exact) * half * 1.01 + terms * 2.0**-20
    assert (np.abs(found.f64 - exact) <= bound).all()


def both(adapter: Mapping[str, Tensor], module: str, left: str = "lora_B.weight", right: str = "lora_A.weight") -> Array:
    one, two = (adapter[f"{START}{module}.{part}"].f64 for part in (left, right))
    return one.reshape(len(one), -1) @ two.reshape(len(two), -1)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_lora(dtype: str, tmp_path: Path) -> None:
    base = base_model(dtype)
    adapter = lora("layer.down", ROWS, COLUMNS) | lora("layer.square", ROWS, ROWS, dtype="bf16")
    conv = {
        f"{START}layer.conv.lora_A.weight": random_tensor(8, (4, 6, 2, 3)),
        f"{START}layer.conv.lora_B.weight": random_tensor(9, (ROWS, 4, 1, 1)),
    }
    folder = write_adapter(tmp_path / "adapter", adapter | conv)
    found = merged(write_folder(tmp_path / "base", base), folder)
    for module in ("layer.down", "layer.square", "layer.conv"):
        name = f"{module}.weight"
        check(found[name], base[name].f64 + 1.5 * both(adapter | conv, module).reshape(base[name].shape))
        assert found[name] != base[name]
    assert {name for name in base if found[name] != base[name]} == {"layer.down.weight", "layer.square.weight", "layer.conv.weight"}
    assert found.keys() == base.keys()


def test_scales(tmp_path: Path) -> None:
    base = base_model()
    adapter = lora("layer.down", ROWS, COLUMNS, rank=9) | lora("layer.square", ROWS, ROWS)
    config: dict[str, Any] = {"rank_pattern": {"down": 9}, "alpha_pattern": {r"layer\.squ.re": 5, "own": 77}, "use_rslora": True}
    found = merged(write_folder(tmp_path / "base", base), write_adapter(tmp_path / "adapter", adapter, **config))
    check(found["layer.down.weight"], base["layer.down.weight"].f64 + 6 / 3 * both(adapter, "layer.down"), terms=2)
    check(found["layer.square.weight"], base["layer.square.weight"].f64 + 5 / 2 * both(adapter, "layer.square"))


def test_stored_the_other_way_round(tmp_path: Path) -> None:
    """The shape says so of a weight that is not square, and that with the config of one that is."""
    base = base_model()
    adapter = lora("layer.down", COLUMNS, ROWS) | lora("layer.square", ROWS, ROWS)
    found = merged(write_folder(tmp_path / "base", base), write_adapter(tmp_path / "adapter", adapter, fan_in_fan_out=True))
    for module in ("layer.down", "layer.square"):
        check(found[f"{module}.weight"], base[f"{module}.weight"].f64 + 1.5 * both(adapter, module).T)


def test_embeddings_and_tensors_saved_whole(tmp_path: Path) -> None:
    base = base_model("bf16")
    factors = {
        f"{START}embed.lora_embedding_A": random_tensor(11, (4, WORDS + 2)),
        f"{START}embed.lora_embedding_B": random_tensor(12, (COLUMNS, 4)),
    }
    saved = {
        f"{START}embed.base_layer.weight": random_tensor(13, (WORDS + 2, COLUMNS)),
        f"{START}layer.down.base_layer.bias": random_tensor(14, (ROWS,)),
        f"{START}layer.norm.modules_to_save.default.weight": random_tensor(15, (COLUMNS,), "bf16"),
        f"{START}score.weight": random_tensor(16, (3, COLUMNS)),
    }
    folder = write_adapter(tmp_path / "adapter", factors | saved, bias="all", modules_to_save=["score", "norm"])
    found = merged(write_folder(tmp_path / "base", base), folder)
    start = cast(saved[f"{START}embed.base_layer.weight"].f64, "bf16").f64
    check(found["embed.weight"], start + 1.5 * both(factors, "embed", "lora_embedding_B", "lora_embedding_A").T)
    assert found["embed.weight"].shape == (WORDS + 2, COLUMNS)
    assert found["layer.down.bias"] == cast(saved[f"{START}layer.down.base_layer.bias"].f64, "bf16")
    assert found["layer.norm.weight"] == saved[f"{START}layer.norm.modules_to_save.default.weight"]
    assert found["score.weight"] == saved[f"{START}score.weight"]
    assert found["layer.down.weight"] == base["layer.down.weight"]


@pytest.mark.parametrize("turned", [False, True])
def test_dora(turned: bool, tmp_path: Path) -> None:
    base = base_model()
    shape = (COLUMNS, ROWS) if turned else (ROWS, COLUMNS)
    adapter = lora("layer.down", *shape) | {f"{START}layer.down.lora_magnitude_vector": random_tensor(17, shape[:1])}
    found = merged(
        write_folder(tmp_path / "base", base), write_adapter(tmp_path / "adapter", adapter, use_dora=True, fan_in_fan_out=turned)
    )
    weight = base["layer.down.weight"].f64
    total = (weight.T if turned else weight) + 1.5 * both(adapter, "layer.down")
    exact = total * (adapter[f"{START}layer.down.lora_magnitude_vector"].f64 / np.linalg.norm(total, axis=1))[:, None]
    check(found["layer.down.weight"], exact.T if turned else exact)


def test_loha(tmp_path: Path) -> None:
    base = base_model()
    shapes = {"hada_w1_a": (ROWS, 4), "hada_w1_b": (4, COLUMNS), "hada_w2_a": (ROWS, 4), "hada_w2_b": (4, COLUMNS)}
    adapter = {f"{START}layer.down.{part}": random_tensor(20 + seed, shape) for seed, (part, shape) in enumerate(shapes.items())}
    found = merged(write_folder(tmp_path / "base", base), write_adapter(tmp_path / "adapter", adapter, peft_type="LOHA"))
    one, two = (both(adapter, "layer.down", f"hada_{side}_a", f"hada_{side}_b") for side in ("w1", "w2"))
    check(found["layer.down.weight"], base["layer.down.weight"].f64 + 1.5 * one * two)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_lokr(first: bool, second: bool, tmp_path: Path) -> None:
    """Each side of the Kronecker product as one factor or as two."""
    base = base_model()
    outer, inner = random_tensor(31, (4, 6)), random_tensor(32, (6, 6))
    adapter: Model = {}
    sides = []
    for name, side, split in (("w1", outer, first), ("w2", inner, second)):
        parts = (
            {f"lokr_{name}_a": random_tensor(33, (side.shape[0], 4)), f"lokr_{name}_b": random_tensor(34, (4, 6))}
            if split
            else {f"lokr_{name}": side}
        )
        adapter |= {f"{START}layer.down.{part}": tensor for part, tensor in parts.items()}
        sides.append(both(adapter, "layer.down", f"lokr_{name}_a", f"lokr_{name}_b") if split else side.f64)
    config: dict[str, Any] = {"peft_type": "LOKR", "r": 2 if first or second else 8, "rank_pattern": {"down": 4}}
    found = merged(write_folder(tmp_path / "base", base), write_adapter(tmp_path / "adapter", adapter, **config))
    check(found["layer.down.weight"], base["layer.down.weight"].f64 + 1.5 * np.kron(*sides))


@pytest.mark.parametrize(("dora", "turned"), [(False, False), (True, False), (True, True)])
def test_any_pieces_are_the_same_bits(dora: bool, turned: bool, tmp_path: Path) -> None:
    """Of a weight of more than a block."""
    base = {"w.weight": random_tensor(41, (1200, 1000), "bf16")}
    shape = (1000, 1200) if turned else (1200, 1000)
    adapter = lora("w", *shape) | ({f"{START}w.lora_magnitude_vector": random_tensor(42, shape[:1])} if dora else {})
    folder = write_adapter(tmp_path / "adapter", adapter, use_dora=dora)
    with open_checkpoint(write_folder(tmp_path / "base", base)) as files, open_adapted(files, folder) as view:
        all_at_once = view.read("w.weight")
        for start, stop in [(0, 1), (999, 1001), (5, 5), (1_048_575, 1_048_577), (123_456, 1_199_999), (1_199_999, 1_200_000)]:
            assert (view.read("w.weight", start, stop) == all_at_once[start:stop]).all()
    weight = base["w.weight"].f64
    exact = (weight.T if turned else weight) + 1.5 * both(adapter, "w")
    if dora:
        exact *= (adapter[f"{START}w.lora_magnitude_vector"].f64 / np.linalg.norm(exact, axis=1))[:, None]
    check(Tensor("bf16", all_at_once.reshape(1200, 1000)), exact.T if turned else exact)


def test_names_without_the_wrapper(tmp_path: Path) -> None:
    base, adapter = base_model(), lora("model.layer.down", ROWS, COLUMNS)
    folder = write_adapter(tmp_path / "adapter", adapter)
    with open_checkpoint(write_folder(tmp_path / "base", base)) as files, open_adapted(files, folder) as view:
        assert any("begin with 'model.'" in note for note in view.notes)
        check(
            Tensor("f32", view.read("layer.down.weight").reshape(ROWS, COLUMNS)),
            base["layer.down.weight"].f64 + 1.5 * both(adapter, "model.layer.down"),
        )


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [(Recipe(exact=True), "f32"), (Recipe(exact=True), "bf16"), (Recipe(drop_rate=0, values="f32"), "bf16")],
    ids=["exact f32", "exact bf16", "f32 values"],
)
def test_a_pack_restores_what_the_view_holds(recipe: Recipe, dtype: str, tmp_path: Path) -> None:
    """Differences of bf16 are exact in f32; those of f32 are not."""
    base = write_folder(tmp_path / "base", base_model(dtype), {"config.json": "{}", "tokenizer.json": "old", "vocab.txt": "a"})
    adapter = write_adapter(tmp_path / "a", lora("layer.down", ROWS, COLUMNS), {"tokenizer.json": "new", "README.md": "card"})
    report = deltapack.compress(base, adapter, tmp_path / "x.dpk", recipe=recipe)
    deltapack.apply(base, tmp_path / "x.dpk", tmp_path / "out")
    view = merged(base, adapter)
    assert read_model(tmp_path / "out") == view
    assert view["layer.down.weight"] != read_model(base)["layer.down.weight"]
    files = read_folder(tmp_path / "out")
    assert (files["tokenizer.json"], files["vocab.txt"], files["config.json"]) == (b"new", b"a", b"{}")
    assert "README.md" not in files
    assert any("(LoRA of 1 module)" in note for note in report.notes)


def test_a_torch_file_and_another_base_name(tmp_path: Path) -> None:
    base, adapter = write_folder(tmp_path / "base", base_model()), lora("layer.down", ROWS, COLUMNS)
    safe = write_adapter(tmp_path / "safe", adapter)
    other = write_adapter(tmp_path / "other", adapter, base_model_name_or_path="org/big-model")
    (other / "adapter_model.safetensors").unlink()
    torch.save({name: torch.from_numpy(tensor.bits) for name, tensor in adapter.items()}, other / "adapter_model.bin")
    assert merged(base, other) == merged(base, safe)
    with open_checkpoint(base) as files, open_adapted(files, other) as view:
        assert any("org/big-model" in note for note in view.notes)


def test_what_is_an_adapter(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora("layer.down", ROWS, COLUMNS))
    assert is_adapter(adapter)
    assert not is_adapter(adapter / "adapter_model.safetensors")
    write_file(adapter / "model.safetensors", base_model())
    assert not is_adapter(adapter)


def test_a_pack_of_new_and_larger_tensors(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", base_model("bf16"))
    saved = {f"{START}embed.weight": random_tensor(13, (WORDS + 2, COLUMNS)), f"{START}score.weight": random_tensor(16, (3, COLUMNS))}
    adapter = write_adapter(tmp_path / "adapter", saved | lora("layer.conv", ROWS, 36), modules_to_save=["score"])
    with pytest.raises(BaseMismatchError, match="another shape"):
        merged(base, write_adapter(tmp_path / "odd", lora("layer.conv", ROWS, 35)))
    report = deltapack.compress(base, adapter, tmp_path / "x.dpk", recipe=Recipe(exact=True))
    deltapack.apply(base, tmp_path / "x.dpk", tmp_path / "out")
    assert read_model(tmp_path / "out") == merged(base, adapter)
    assert any("score.weight is new" in note for note in report.notes)
    assert any(f"embed.weight has {WORDS + 2} rows instead of {WORDS}" in note for note in report.notes)


def test_an_adapter_of_what_a_pack_restores(tmp_path: Path) -> None:
    """The base of the second pack is the result of the first."""
    base = write_folder(tmp_path / "base", base_model("bf16"))
    tuned = write_folder(tmp_path / "tuned", tuned_model(base_model("bf16")))
    adapter = write_adapter(tmp_path / "adapter", lora("layer.down", ROWS, COLUMNS))
    first, second = tmp_path / "1.dpk", tmp_path / "2.dpk"
    deltapack.compress(base, tuned, first, recipe=Recipe(exact=True))
    deltapack.compress(base, adapter, second, recipe=Recipe(exact=True), base_packs=[first])
    deltapack.apply(tuned, second, tmp_path / "out")
    assert read_model(tmp_path / "out") == merged(tuned, adapter)
    assert merged(tuned, adapter) != read_model(tuned)


def test_a_look_before(tmp_path: Path) -> None:
    base, adapter = write_folder(tmp_path / "base", base_model()), write_adapter(tmp_path / "adapter", lora("layer.down", ROWS, COLUMNS))
    preview = deltapack.preview_compress(base, adapter, recipe=Recipe(exact=True))
    assert any("is an adapter" in note for note in preview.notes)


def test_a_base_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    """It has its name in the path."""
    folder = tmp_path / "models--org--big-model" / "snapshots" / "0a1b"
    folder.parent.mkdir(parents=True)
    adapter = write_adapter(tmp_path / "adapter", lora("layer.down", ROWS, COLUMNS), base_model_name_or_path="org/big-model")
    with open_checkpoint(write_folder(folder, base_model())) as files, open_adapted(files, adapter) as view:
        assert not any("org/big-model" in note for note in view.notes)


def test_where_unchanged_tensors_lie(tmp_path: Path) -> None:
    """Only what the adapter leaves alone is in a file."""
    adapter = write_adapter(tmp_path / "adapter", lora("layer.down", ROWS, COLUMNS))
    with open_checkpoint(write_folder(tmp_path / "base", base_model())) as files, open_adapted(files, adapter) as view:
        assert view.file_range("layer.down.weight", 0) is None
        assert view.file_range("layer.square.weight", 3) == files.file_range("layer.square.weight", 3) is not None


def test_a_beginning_that_fits_twice(tmp_path: Path) -> None:
    base = {f"{name}.down.weight": random_tensor(1, (ROWS, COLUMNS)) for name in "ab"}
    with pytest.raises(BaseMismatchError, match=r"lacks: expected 'down\.weight'"):
        merged(write_folder(tmp_path / "base", base), write_adapter(tmp_path / "adapter", lora("down", ROWS, COLUMNS)))


def test_few_updates_are_kept() -> None:
    kept, built, one = KeptUpdates(most=2), list[str](), np.zeros((1, 1), np.float32)

    def get(name: str) -> None:
        def build() -> LowRank:
            built.append(name)
            return LowRank(one, one, np.float32(1))

        kept.get(name, build)

    for name in "abbacab":  # b is the one that was not used for longest when c comes
        get(name)
    assert built == ["a", "b", "c", "b"]


def test_a_file_of_an_adapter_stands_for_its_folder(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", write_adapter(tmp_path / "adapter", lora("layer.down", ROWS, COLUMNS))
    write_folder(base, base_model())
    for number, name in enumerate((adapter, adapter / "adapter_model.safetensors")):
        deltapack.compress(base, name, tmp_path / f"{number}.dpk", recipe=Recipe(exact=True), workers=1)
    assert (tmp_path / "0.dpk").read_bytes() == (tmp_path / "1.dpk").read_bytes()
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(NotACheckpointError, match="no config beside it"):
        deltapack.compress(base, adapter / "adapter_model.safetensors", tmp_path / "2.dpk")


def test_side_files_of_an_adapter_stay_behind(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", base_model(), {"config.json": "{}", "tokenizer.json": "1"})
    adapter = write_adapter(tmp_path / "adapter", lora("layer.down", ROWS, COLUMNS), {"tokenizer.json": "2", "chat_template.jinja": "x"})

    def names(*leave_out: str) -> list[str]:
        (tmp_path / "x.dpk").unlink(missing_ok=True)
        deltapack.compress(base, adapter, tmp_path / "x.dpk", recipe=Recipe(exact=True), workers=1, leave_out=leave_out)
        with deltapack.open_pack(tmp_path / "x.dpk") as pack:
            return [file.name for file in pack.index.files or ()]

    assert names() == ["chat_template.jinja", "config.json", "tokenizer.json"]
    assert names("chat_template.*") == ["config.json", "tokenizer.json"]
    assert names("tokenizer.json") == ["chat_template.jinja", "config.json"]
    assert names("config.json", "chat*") == ["tokenizer.json"]
    with pytest.raises(RecipeError, match="fits none"):
        names("nothing.*")


def test_an_adapter_is_evaluated(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", base_model(), {"config.json": "{}"})
    adapter = write_adapter(tmp_path / "adapter", lora("layer.down", ROWS, COLUMNS))
    deltapack.compress(base, adapter, tmp_path / "x.dpk", recipe=Recipe(exact=True), workers=1)
    seen = list[float]()

    def score(folder: Path) -> float:
        seen.append(float(abs(read_model(folder)["layer.down.weight"].f64).sum()))
        return seen[-1]

    deltapack.evaluate(base, adapter, [tmp_path / "x.dpk"], score=score, workers=1)
    assert len(seen) == 3 and len(set(seen)) == 2


def test_a_step_of_a_run_is_no_adapter(tmp_path: Path) -> None:
    """It would be merged into the step before, and not into the base that it was trained on."""
    base = write_folder(tmp_path / "base", base_model(), {"config.json": "{}"})
    adapter = write_adapter(tmp_path / "checkpoint-1", lora("layer.down", ROWS, COLUMNS))
    for name in (adapter, adapter / "adapter_model.safetensors"):
        with pytest.raises(UnsupportedError, match="is an adapter, not a whole model"):
            deltapack.pack_step(tmp_path / "packs", name, 1, base=base)
    assert not (tmp_path / "packs").exists()
