"""A pack as a LoRA: read back by deltapack itself, which needs no PEFT; `tests/peers` has peft load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapters import merged
from support.builders import Model, cast, random_tensor, read_file, tuned_model, whole, write_file, write_folder

import deltapack
from deltapack import Recipe
from deltapack.checkpoint import open_checkpoint
from deltapack.dtypes import BY_NAME
from deltapack.errors import BaseMismatchError, OutputError, RecipeError
from deltapack.exporting.adapter_config import shortest_names
from deltapack.exporting.lowrank import Target, factorize
from deltapack.exporting.modules import modules_of

RANK = 5


def base_model(dtype: str = "f32") -> Model:
    return {
        "embed_tokens.weight": random_tensor(1, (50, 36), dtype),
        "layer.0.down.weight": random_tensor(2, (24, 36), dtype),
        "layer.0.down.bias": random_tensor(3, (24,), dtype),
        "layer.0.c_attn.weight": random_tensor(4, (36, 60), dtype),
        "layer.0.c_attn.bias": random_tensor(5, (60,), dtype),
        "layer.0.conv.weight": random_tensor(6, (24, 6, 2, 3), dtype),
        "layer.0.groups.weight": random_tensor(7, (24, 1, 3), dtype),
        "layer.0.norm.weight": random_tensor(8, (36,), dtype),
        "layer.0.norm.bias": random_tensor(9, (36,), dtype),
        "layer.0.scale": random_tensor(10, (36,), dtype),
        "layer.1.down.weight": random_tensor(11, (24, 36), dtype),
        "positions": whole("i64", np.arange(9)),
    }


def low_rank(seed: int, shape: tuple[int, ...], rank: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    left, right = random.standard_normal((shape[0], rank)), random.standard_normal((rank, int(np.prod(shape[1:]))))
    return (left @ right).reshape(shape) * 0.01


def make(folder: Path, base: Model, tuned: Model) -> Path:
    write_file(folder / "base.safetensors", base)
    write_file(folder / "tuned.safetensors", tuned)
    deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", folder / "x.dpk", recipe=Recipe(exact=True), workers=1)
    return folder / "x.dpk"


def changed_by(base: Model, rank: int) -> Model:
    """Matrices changed by low ranks, all other floats at random."""
    tuned = dict(tuned_model(base))
    for seed, (name, tensor) in enumerate(base.items()):
        if len(tensor.shape) > 1 and name != "layer.0.groups.weight":
            tuned[name] = cast(tensor.f64 + low_rank(seed, tensor.shape, rank), tensor.dtype)
    tuned["positions"] = base["positions"]
    return tuned


def export(folder: Path, pack: Path, **options: Any) -> deltapack.AdapterReport:
    return deltapack.export_adapter(pack, folder / "base.safetensors", folder / "adapter", **options)


def test_factors_of_enough_rank_give_the_fine_tune(tmp_path: Path) -> None:
    base = base_model()
    tuned = changed_by(base, RANK)
    report = export(tmp_path, make(tmp_path, base, tuned), rank=RANK, workers=2)
    assert {row.tensor for row in report.rows} == {
        "embed_tokens.weight",
        "layer.0.down.weight",
        "layer.0.c_attn.weight",
        "layer.0.conv.weight",
        "layer.1.down.weight",
    }
    assert all(row.rank == RANK and row.error < 2e-6 and row.energy > 1 - 1e-9 for row in report.rows)
    assert list(report.left_out) == ["layer.0.scale"] and "beside other modules" in report.left_out["layer.0.scale"]
    assert "layer.0.scale" in report.warnings[-1] and report.energy > 1 - 1e-9
    found = merged(tmp_path / "base.safetensors", tmp_path / "adapter")
    for name, tensor in tuned.items():
        if name == "layer.0.scale":
            assert np.array_equal(found[name].f64, base[name].f64)
        elif name in report.whole:
            assert np.array_equal(found[name].f64, tensor.f64)
        else:
            assert np.abs(found[name].f64 - tensor.f64).max() <= 2.0**-20, name
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"], config["fan_in_fan_out"]) == (RANK, RANK, "all", True)
    assert config["modules_to_save"] == ["layer.0.groups", "layer.0.norm"]
    assert config["target_modules"] == ["c_attn", "conv", "down", "embed_tokens"] and config["rank_pattern"] == {}
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_an_unchanged_weight_has_no_factors(tmp_path: Path) -> None:
    base = base_model()
    tuned = {**base, "layer.1.down.weight": changed_by(base, 2)["layer.1.down.weight"]}
    report = export(tmp_path, make(tmp_path, base, tuned), rank=2)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert [row.rank for row in report.rows] == [2] and config["target_modules"] == ["layer.1.down"]
    assert (config["r"], config["bias"], config["modules_to_save"]) == (2, "none", None)
    where = str((tmp_path / "base.safetensors").resolve())
    assert config["base_model_name_or_path"] == where and any(f"names the base by its path, {where}" in note for note in report.notes)
    with pytest.raises(RecipeError, match=r"--rank 64 or --energy 0\.95"):
        deltapack.export_adapter(tmp_path / "x.dpk", tmp_path / "base.safetensors", tmp_path / "other")


def test_ranks_that_hold_a_share(tmp_path: Path) -> None:
    base = base_model()
    tuned = changed_by(base, 20)
    tuned["layer.1.down.weight"] = cast(base["layer.1.down.weight"].f64 + low_rank(1, (24, 36), 1), "f32")
    report = export(tmp_path, make(tmp_path, base, tuned), energy=0.8)
    for row in report.rows:
        matrix = (tuned[row.tensor].f64 - base[row.tensor].f64).reshape(base[row.tensor].shape[0], -1)
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        assert row.rank == int(np.searchsorted(np.cumsum(squares), 0.8 * squares.sum())) + 1
        assert row.energy == pytest.approx(squares[: row.rank].sum() / squares.sum(), rel=1e-4)
    assert len({row.rank for row in report.rows}) > 1
    found = merged(tmp_path / "base.safetensors", tmp_path / "adapter")
    for row in report.rows:
        left = np.linalg.norm(tuned[row.tensor].f64 - found[row.tensor].f64)
        assert left / np.linalg.norm(tuned[row.tensor].f64 - base[row.tensor].f64) == pytest.approx(row.error, rel=1e-3, abs=1e-5)


def test_a_share_is_held_by_no_more_than_a_rank(tmp_path: Path) -> None:
    base = base_model()
    report = export(tmp_path, make(tmp_path, base, changed_by(base, 20)), energy=0.99, rank=2)
    assert {row.rank for row in report.rows} == {2}
    assert "is far from the fine-tune" in report.warnings[0] and report.error > 0.5


def test_without_vectors(tmp_path: Path) -> None:
    base = base_model("bf16")
    report = export(tmp_path, make(tmp_path, base, changed_by(base, 3)), rank=RANK, vectors=False, dtype="bf16")
    assert report.whole == [] and "layer.0.norm.weight" in report.left_out and "layer.0.down.bias" in report.left_out
    tensors = read_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {"bf16"} and all("lora_" in name for name in tensors)
    assert all(0 < row.error < 0.2 for row in report.rows)


def test_a_vocabulary_that_grew(tmp_path: Path) -> None:
    base = base_model()
    tuned = {**base, "embed_tokens.weight": random_tensor(9, (53, 36), "f32"), "score.weight": random_tensor(8, (2, 36), "f32")}
    report = export(tmp_path, make(tmp_path, base, tuned), rank=2)
    assert (report.rows, report.whole) == ([], ["embed_tokens.weight", "score.weight"])
    assert "resize_token_embeddings(53)" in " ".join(report.notes)
    found = merged(tmp_path / "base.safetensors", tmp_path / "adapter")
    assert np.array_equal(found["embed_tokens.weight"].f64, tuned["embed_tokens.weight"].f64)


def test_what_peft_would_save_beside(tmp_path: Path) -> None:
    """PEFT saves every module whose name ends as one that is named: so they are all there, or none is."""
    base = {
        "norm.weight": random_tensor(1, (8,)),
        "layer.0.post_norm.weight": random_tensor(2, (8,)),
        "layer.0.up.weight": random_tensor(3, (8, 8)),
    }
    report = export(tmp_path, make(tmp_path, base, {**base, "norm.weight": random_tensor(4, (8,))}), rank=2)
    assert report.whole == ["layer.0.post_norm.weight", "norm.weight"]
    (tmp_path / "more").mkdir()
    base["norm_x.layer.norm.weight"] = random_tensor(5, (9, 9))
    tuned = {**base, "norm.weight": random_tensor(4, (8,)), "norm_x.layer.norm.weight": random_tensor(6, (9, 9))}
    report = export(tmp_path / "more", make(tmp_path / "more", base, tuned), rank=2)
    assert "whose name ends the same" in report.left_out["norm.weight"] and report.whole == []


def test_workers_change_nothing(tmp_path: Path) -> None:
    base = base_model("bf16")
    pack = make(tmp_path, base, changed_by(base, 20))
    files = []
    for workers in (1, 3):
        out = tmp_path / str(workers)
        deltapack.export_adapter(pack, tmp_path / "base.safetensors", out, rank=4, workers=workers)
        files.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert files[0] == files[1]


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (64, 64)])
@pytest.mark.parametrize("decay", [1.0, 0.8, 0.1])
def test_factors_lose_least(shape: tuple[int, int], decay: float) -> None:
    random = np.random.default_rng(3)
    left, _, right = np.linalg.svd(random.standard_normal(shape), full_matrices=False)
    matrix = ((left * decay ** np.arange(min(shape))) @ right).astype(np.float32)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    for rank in (1, 4, 60):
        made = factorize(lambda start, stop: matrix.reshape(-1)[start:stop], *shape, Target(rank, None, BY_NAME["f32"]), 1)
        assert made is not None and made.rank <= min(rank, *shape)
        best = np.linalg.norm(values[rank:])
        found = np.linalg.norm(matrix - made.left.astype(np.float64) @ made.right)
        assert found <= 1.01 * best + 1e-6 * np.linalg.norm(values)
        assert made.error * np.linalg.norm(values) == pytest.approx(found, rel=1e-3, abs=1e-6)


def test_nothing_and_no_numbers() -> None:
    target = Target(4, 0.9, BY_NAME["f32"])
    zero = factorize(lambda start, stop: np.zeros(stop - start, np.float32), 20, 30, target, 1)
    assert zero is not None and (zero.rank, zero.error) == (0, 0.0)
    assert factorize(lambda start, stop: np.full(stop - start, np.inf, np.float32), 20, 30, target, 1) is None


def test_names_of_targets() -> None:
    assert shortest_names(["lm_head"], ["lm_head", "h.0.up"]) == ["lm_head"]
    assert shortest_names(["h.0.up"], ["h", "h.0", "h.1", "h.0.up", "h.1.up"]) == ["h.0.up"]


def test_modules_of_transformers(tmp_path: Path) -> None:
    """What the config's class is made of comes before what shapes say."""
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9}
    tensors = {"h.0.attn.c_proj.weight": random_tensor(1, (8, 8))}
    for folder, files in (("known", {"config.json": json.dumps(config)}), ("strange", {"config.json": '{"architectures": ["Nobody"]}'})):
        write_folder(tmp_path / folder, tensors, files)
    with open_checkpoint(tmp_path / "known") as known, open_checkpoint(tmp_path / "strange") as strange:
        modules = modules_of(known)
        assert (modules.kinds["transformer.h.0.attn.c_proj"], modules.ends, modules.why) == ("turned", ("transformer.wte", "lm_head"), "")
        told = modules_of(strange)
        assert told.kinds == {"h": "other", "h.0": "other", "h.0.attn": "other", "h.0.attn.c_proj": "linear"}
        assert "names no class" in told.why


@pytest.mark.parametrize("wrong", [{"n_layer": 10**9}, {"n_layer": 3000}, {"vocab_size": 10**18}, {"nested": [{"depth": 1 << 30}]}])
def test_a_config_that_asks_for_a_model_without_end(tmp_path: Path, wrong: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9}
    write_folder(tmp_path / "model", {"h.0.c_proj.weight": random_tensor(1, (8, 8))}, {"config.json": json.dumps(config | wrong)})
    with open_checkpoint(tmp_path / "model") as checkpoint:
        modules = modules_of(checkpoint)
    assert modules.why.startswith("config.json asks for") and modules.kinds["h.0.c_proj"] == "linear"


def test_a_config_calls_nothing_but_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    called = list[object]()
    monkeypatch.setattr(transformers, "set_seed", called.append)
    config = {"architectures": ["set_seed"], "model_type": "gpt2"}
    write_folder(tmp_path / "model", {"h.0.weight": random_tensor(1, (8, 8))}, {"config.json": json.dumps(config)})
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert "names no class" in modules_of(checkpoint).why and not called


def test_what_is_refused(tmp_path: Path) -> None:
    base = base_model()
    pack = make(tmp_path, base, changed_by(base, 3))
    for options, message in (
        ({}, "how large"),
        ({"rank": 0}, "rank is out of range"),
        ({"energy": 1.5}, "energy is out of range"),
        ({"rank": 2, "dtype": "f64"}, "no type of factors"),
        ({"rank": 2, "dtype": "i8"}, "not a float"),
    ):
        with pytest.raises(RecipeError, match=message):
            export(tmp_path, pack, **options)
    with pytest.raises(BaseMismatchError):
        deltapack.export_adapter(pack, tmp_path / "tuned.safetensors", tmp_path / "adapter", rank=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "tuned.safetensors", "x.dpk"]
    (tmp_path / "adapter").mkdir()
    with pytest.raises(OutputError, match="exists"):
        export(tmp_path, pack, rank=2)
    (tmp_path / "same").mkdir()
    with pytest.raises(RecipeError, match="changes nothing that an adapter holds"):
        export(tmp_path / "same", make(tmp_path / "same", base, base), rank=2)
