"""Every method on every kind of tensor: a folder, a merged pack and the reference decoder give one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import (
    CHUNK,
    FLOATS,
    Model,
    Tensor,
    cast,
    decode_by_spec,
    edited,
    moved,
    random_tensor,
    read_model,
    tuned_model,
    whole,
)

import deltapack
from deltapack.errors import MergeConflictError, NonFiniteError
from deltapack.merging.methods.table import METHODS

PackOf = Callable[..., Path]
ALL = [(name, semantics) for name, variants in METHODS.items() for semantics in variants]


def checked(tmp_path: Path, base: Mapping[str, Tensor], packs: list[Path], **options: Any) -> Model:
    paths = {"base": tmp_path / "base.safetensors", "packs": packs, "force": True}
    deltapack.merge(**paths, out=tmp_path / "merged.safetensors", **options)
    deltapack.merge(**paths, out=tmp_path / "merged.dpk", **options)
    direct = read_model(tmp_path / "merged.safetensors")
    deltapack.apply(tmp_path / "base.safetensors", tmp_path / "merged.dpk", tmp_path / "applied.safetensors", force=True)
    assert read_model(tmp_path / "applied.safetensors") == direct
    assert decode_by_spec(base, tmp_path / "merged.dpk") == direct
    deltapack.verify(tmp_path / "merged.dpk", tmp_path / "base.safetensors")
    return direct


@pytest.mark.parametrize(("method", "semantics"), ALL)
def test_every_type_and_shape(pack_of: PackOf, tmp_path: Path, method: str, semantics: str) -> None:
    base: Model = {f"{dtype} {list(shape)}": random_tensor(1, shape, dtype) for dtype in FLOATS for shape in ((), (0,), (1,), (37, 5))}
    base |= {"zero": edited(random_tensor(2, (300,)), 7, -0.0), "steps": whole("i64", 4), "only one": random_tensor(3, (400,), "bf16")}
    tuned = [tuned_model(base, seed, scale=0.1) for seed in (10, 20, 30)]
    for model in tuned[1:]:
        model["only one"] = base["only one"]
    tuned[2]["zero"] = base["zero"]
    rates = (0.5, 0.5, 0.0)
    packs = [
        pack_of(base, model, f"{number}", drop_rate=rate, values="f32", seed=number)
        for number, (model, rate) in enumerate(zip(tuned, rates, strict=True))
    ]
    trims = METHODS[method][semantics].trim is not None
    for density in (None, 0.3) if trims else (None,):
        result = checked(tmp_path, base, packs, method=method, semantics=semantics, density=density)
        assert result.keys() == base.keys()
        assert {name: tensor.dtype for name, tensor in result.items()} == {name: tensor.dtype for name, tensor in base.items()}
        assert result["steps"] == base["steps"]
        assert result["f32 [37, 5]"] != base["f32 [37, 5]"]
        # Where one pack alone changes a tensor, the cosines that model stock goes by are 0.
        assert (result["only one"] == base["only one"]) == (method == "model_stock")


@pytest.mark.parametrize("method", ["ties", "sce", "average"])
def test_tensors_that_grow(pack_of: PackOf, tmp_path: Path, method: str) -> None:
    base = {"e": random_tensor(1, (90, 20), "bf16"), "x": random_tensor(2, (CHUNK + 5,), "bf16")}
    more = random_tensor(5, (100, 20), "bf16")
    more.bits[:90] = moved(base["e"], 4).bits
    exact = {"drop_rate": 0, "values": "f32"}
    packs = [pack_of(base, {"e": more, "x": base["x"]}, "one", **exact), pack_of(base, tuned_model(base, 20), "other", **exact)]
    result = checked(tmp_path, base, packs, method=method)
    assert np.array_equal(result["e"].bits[90:], more.bits[90:])
    same_rows = {"e": Tensor("bf16", more.bits[:90]), "x": base["x"]}
    plain = checked(tmp_path, base, [pack_of(base, same_rows, "rows", **exact), packs[1]], method=method)
    assert np.array_equal(result["e"].bits[:90], plain["e"].bits)
    assert result["x"] == plain["x"]


def test_tensors_that_cannot_be_blended(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"head": random_tensor(1, (9, 9)), "x": random_tensor(2, (300,))}
    other = {"head": random_tensor(3, (4, 9)), "x": moved(base["x"], 4)}
    packs = [pack_of(base, tuned_model(base, 5), "one"), pack_of(base, other, "other")]
    with pytest.raises(MergeConflictError):
        checked(tmp_path, base, packs, method="ties")
    assert checked(tmp_path, base, packs, method="ties", prefer=packs[1])["head"].shape == (4, 9)
    assert checked(tmp_path, base, packs, method="ties", prefer=packs[0])["head"].shape == (9, 9)


def test_a_tensor_that_a_pack_removed_is_merged_from_the_others(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"head": random_tensor(1, (300,)), "x": random_tensor(2, (300,))}
    without = {"x": moved(base["x"], 3)}
    packs = [pack_of(base, without, "without"), pack_of(base, tuned_model(base, 5), "other")]
    alone = checked(tmp_path, base, packs[1:], method="ties", parameters={"normalize": False})["head"]
    assert checked(tmp_path, base, packs, method="ties", parameters={"normalize": False})["head"] == alone


@pytest.mark.parametrize("weights", [(1.0, -1.0), (-0.5, -0.25), (0.0, 0.0)])
@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_weights_without_a_sum(pack_of: PackOf, tmp_path: Path, method: str, weights: tuple[float, float]) -> None:
    base = {"x": random_tensor(1, (900,))}
    packs = [pack_of(base, tuned_model(base, seed), f"{seed}", drop_rate=0, values="f32") for seed in (1, 2)]
    result = checked(tmp_path, base, packs, method=method, weights=weights, parameters={"normalize": True})
    assert np.isfinite(result["x"].f64).all()
    if not any(weights):
        assert np.array_equal(result["x"].f64, base["x"].f64)


def test_elements_that_no_pack_keeps_keep_their_bits(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"x": Tensor("f32", np.full(2000, -0.0, "<f4"))}
    packs = [pack_of(base, tuned_model(base, seed), f"{seed}", drop_rate=0.9, values="f32") for seed in (1, 2)]
    result = checked(tmp_path, base, packs, method="sce", parameters={"select_topk": 0.5})
    kept = set()
    for path in packs:
        with deltapack.open_pack(path) as pack:
            kept |= set(pack["x"].to_sparse()[0].tolist())
    untouched = np.setdiff1d(np.arange(2000), list(kept))
    assert np.signbit(result["x"].bits[untouched]).all() and len(untouched) > 1000


def test_a_sum_that_overflows_is_an_error_in_a_pack(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"x": Tensor("f32", np.zeros(600, "<f4"))}
    packs = [pack_of(base, {"x": cast(np.linspace(1, 3e38, 600), "f32")}, f"{n}", drop_rate=0, values="f32") for n in (1, 2)]
    options = {"method": "dare_ties", "weights": [1, 1]}
    deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "out.safetensors", **options)  # type: ignore[arg-type]
    assert np.isinf(read_model(tmp_path / "out.safetensors")["x"].bits).any()
    with pytest.raises(NonFiniteError) as error:
        deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "out.dpk", **options)  # type: ignore[arg-type]
    assert error.value.tensor == "x"
    assert not (tmp_path / "out.dpk").exists()
