"""Packs with terms of low rank, in every way that packs are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support.builders import CHUNK, Model, Tensor, cast, random_tensor, read_file, whole
from support.factor_packs import factor_pack, restored_by_hand
from support.fixtures import PackOf

import deltapack
from deltapack.codecs.factors import Factors
from deltapack.format.reader import PackReader
from deltapack.merging.methods.table import METHODS
from deltapack.packs.inspecting import inspect_pack


def low(tensor: Tensor, seed: int, shape: tuple[int, ...] | None = None, dtype: str | None = None) -> Tensor:
    """The tensor plus a difference of low rank and noise; rows beyond its own are new."""
    rng, shape = np.random.default_rng(seed), shape or tensor.shape
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    change = sum(0.05 / k * np.outer(rng.normal(0, 1, rows), rng.normal(0, 1, columns)) for k in (1, 2, 3))
    change = (change + rng.normal(0, 0.01, (rows, columns))).reshape(shape)
    held = np.zeros(change.size)
    count = min(change.size, tensor.bits.size)
    held[:count] = tensor.f64.reshape(-1)[:count]
    return cast(held.reshape(shape) + change, dtype or tensor.dtype)


def some_base() -> Model:
    dtypes = ("bf16", "f16", "f32", "f64", "f8_e4m3fn")
    return {f"{dtype}.weight": random_tensor(number, (70, 41), dtype) for number, dtype in enumerate(dtypes)} | {
        "cube": random_tensor(11, (5, 9, 21), "bf16"),
        "long": random_tensor(12, (3, CHUNK // 2 + 7), "bf16"),
        "narrow": random_tensor(13, (90, 1), "f32"),
        "vector": random_tensor(14, (300,), "bf16"),
        "ids": whole("i64", np.arange(9)),
    }


def tuned(base: Model, seed: int) -> Model:
    floats = [name for name, tensor in base.items() if tensor.dtype != "i64" and name != "vector"]
    return base | {name: low(base[name], seed + number) for number, name in enumerate(floats)}


def apply(folder: Path, pack: Path, **options: Any) -> Model:
    out = folder / "out.safetensors"
    out.unlink(missing_ok=True)
    deltapack.apply(folder / "base.safetensors", pack, out, **options)
    return read_file(out)


def same(found: Model, expected: Model) -> bool:
    return all(found[name].raw == tensor.raw for name, tensor in expected.items())


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("rank", "bits"), [(1, 2), (3, 4), (8, 8)])
def test_restored_is_what_the_terms_say(tmp_path: Path, residual: bool, rank: int, bits: int) -> None:
    base = some_base()
    pack = factor_pack(tmp_path, base, tuned(base, 50), rank=rank, bits=bits, residual=residual)
    expected = restored_by_hand(pack, base)
    assert set(expected) == {*base} - {"vector", "ids"}
    assert same(apply(tmp_path, pack), expected)
    with PackReader(pack) as reader:
        assert "factors" in reader.index.required
        terms = {entry.name: entry.terms for entry in reader.index.entries if entry.terms}
    assert {name: len(found) for name, found in terms.items()} == dict.fromkeys(expected, 1 + residual)
    assert all(found[0].is_factors for found in terms.values())
    assert {name: found[0].rank for name, found in terms.items()} == dict.fromkeys(expected, rank) | {"narrow": 1, "long": min(rank, 3)}
    deltapack.verify(pack, tmp_path / "base.safetensors")
    deltapack.verify(pack)


def test_weights_and_rescale(tmp_path: Path) -> None:
    base = some_base()
    pack = factor_pack(tmp_path, base, tuned(base, 50))
    for weight, rescale in ((0.5, None), (-3.0, None), (1.0, 2.0), (0.7, 1.5), (0.0, None)):
        options = {} if rescale is None else {"rescale": rescale}
        assert same(apply(tmp_path, pack, weight=weight, **options), restored_by_hand(pack, base, weight, rescale)), (weight, rescale)


def test_the_same_pack_whatever_the_workers(tmp_path: Path) -> None:
    base = some_base()
    packs = [factor_pack(tmp_path, base, tuned(base, 50), f"w{workers}", workers=workers) for workers in (1, 4)]
    assert packs[0].read_bytes() == packs[1].read_bytes()
    assert apply(tmp_path, packs[0], workers=1) == apply(tmp_path, packs[1], workers=4)


def test_the_product_is_taken_off_before_elements_are_coded(tmp_path: Path) -> None:
    base = {"a": random_tensor(0, (200, 150), "f32")}
    fine = {"a": low(base["a"], 1)}
    pack = factor_pack(tmp_path, base, fine, rank=3, bits=8, drop_rate=0, values="f32")
    found = apply(tmp_path, pack)["a"].f64
    assert np.abs(found - fine["a"].f64).max() < 1e-6


def test_tensors_of_another_shape_or_type(tmp_path: Path) -> None:
    base = {name: random_tensor(number, (60, 30), "bf16") for number, name in enumerate(("grown", "shrunk", "wider", "same"))}
    fine = {
        "grown": low(base["grown"], 1, (77, 30)),
        "shrunk": low(base["shrunk"], 2, (41, 30)),
        "wider": low(base["wider"], 3, dtype="f32"),
        "same": low(base["same"], 4),
    }
    pack = factor_pack(tmp_path, base, fine)
    found, expected = apply(tmp_path, pack), restored_by_hand(pack, base)
    assert set(expected) == set(base)
    for name, tensor in expected.items():
        assert found[name].raw[: len(tensor.raw)] == tensor.raw, name
    assert found["grown"].bits[60:].tobytes() == fine["grown"].bits[60:].tobytes()
    with PackReader(pack) as reader:
        assert {entry.name: entry.kind for entry in reader.index.entries} == {
            "grown": "grown",
            "shrunk": "shrunk",
            "wider": "delta",
            "same": "delta",
        }


def test_patching_in_memory(tmp_path: Path) -> None:
    base = {name: tensor for name, tensor in some_base().items() if name != "ids"}
    pack = factor_pack(tmp_path, base, tuned(base, 50))
    expected = restored_by_hand(pack, base)
    with deltapack.open_pack(pack) as opened:
        loaded = opened.load()
        assert loaded.nbytes > 0
        for patch in (opened.add_to, loaded.add_to):
            state = {name: tensor.bits.copy() for name, tensor in base.items()}
            patch(state)
            assert all(state[name].tobytes() == tensor.raw for name, tensor in expected.items())


def test_looking_at_it(tmp_path: Path) -> None:
    base = {"a": random_tensor(0, (64, 48), "f32"), "b": random_tensor(0, (64, 48), "f32")}
    pack = factor_pack(tmp_path, base, base | {"a": low(base["a"], 1)}, residual=False)
    with deltapack.open_pack(pack) as opened:
        dense = opened["a"].to_dense()
        positions, values = opened["a"].to_sparse()
        assert opened["a"].nnz == 64 * 48
    assert positions.tolist() == list(range(64 * 48))
    assert dense.reshape(-1).tobytes() == values.tobytes()
    zero = cast(np.zeros((64, 48)), "f32")
    assert restored_by_hand(pack, {"a": zero, "b": zero})["a"].bits.tobytes() == values.tobytes()
    summary = inspect_pack(pack)
    assert dict(summary.value_codecs) == {"factors": 1}


@pytest.mark.parametrize("method", [name for name, variants in METHODS.items() if "mergekit" in variants])
def test_merges_are_those_of_dense_packs(tmp_path: Path, pack_of: PackOf, method: str) -> None:
    base = {"a": cast(np.zeros((50, 40)), "f32"), "b": cast(np.zeros((30, 20)), "f32")}
    products, dense = [], []
    for number in (1, 2):
        fine = {name: low(tensor, 10 * number) for name, tensor in base.items()}
        products.append(factor_pack(tmp_path, base, fine, f"p{number}", residual=False))
        same_values = {
            name: Tensor("f32", tensor.bits.reshape(base[name].shape)) for name, tensor in restored_by_hand(products[-1], base).items()
        }
        dense.append(pack_of(base, same_values, f"d{number}", drop_rate=0, values="f32"))
    found = []
    for packs in (products, dense):
        out = tmp_path / "merged.safetensors"
        deltapack.merge(tmp_path / "base.safetensors", packs, out, method=method, force=True)
        found.append(read_file(out))
    if method == "model_stock":  # its weights enter the factors, before the product is rounded
        assert all(np.allclose(tensor.f64, found[1][name].f64, rtol=1e-6, atol=1e-7) for name, tensor in found[0].items())
    else:
        assert found[0] == found[1]
    assert any(tensor.bits.any() for tensor in found[0].values())


@pytest.mark.parametrize("workers", [1, 3])
def test_a_merge_of_many_packs_reads_their_factors_once(tmp_path: Path, workers: int) -> None:
    base = {name: tensor for name, tensor in some_base().items() if name in ("long", "cube")}  # three chunks, of two tensors
    packs = [factor_pack(tmp_path, base, tuned(base, 10 * number), f"p{number}", residual=False) for number in range(7)]
    with mock.patch.object(Factors, "parse", side_effect=Factors.parse) as parse:
        deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "out.safetensors", weights=[0.5] * 7, workers=workers)
    assert parse.call_count == 2 * 7


@pytest.mark.parametrize("options", [{"weights": [0.5, -1.5]}, {"method": "average"}, {"method": "ties", "density": 0.3}])
def test_a_merged_pack_gives_the_merge(tmp_path: Path, options: dict[str, Any]) -> None:
    base = some_base()
    packs = [factor_pack(tmp_path, base, tuned(base, seed), f"p{seed}", residual=residual) for seed, residual in ((50, True), (90, False))]
    out = tmp_path / "merged.dpk"
    deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "merged.safetensors", force=True, **options)
    deltapack.merge(tmp_path / "base.safetensors", packs, out, force=True, **options)
    deltapack.verify(out, tmp_path / "base.safetensors")
    assert apply(tmp_path, out) == read_file(tmp_path / "merged.safetensors")
    with PackReader(out) as reader:
        added = {entry.name: [term.is_factors for term in entry.terms] for entry in reader.index.entries if entry.terms}
    if "ties" not in options.values():
        assert added["bf16.weight"] == [True, False, True]


def test_a_chain_of_packs_squashed(tmp_path: Path) -> None:
    base = {"a": random_tensor(0, (64, 48), "bf16")}
    middle = {"a": low(base["a"], 1)}
    first = factor_pack(tmp_path, base, middle, "first")
    made = restored_by_hand(first, base)["a"]
    between = {"a": Tensor("bf16", made.bits.reshape(64, 48))}
    (tmp_path / "second").mkdir()
    second = factor_pack(tmp_path / "second", between, {"a": low(between["a"], 2)}, "second")
    out = tmp_path / "both.dpk"
    deltapack.squash([first, second], out, base=tmp_path / "base.safetensors")
    assert apply(tmp_path, out)["a"].raw == restored_by_hand(second, between)["a"].raw


def test_packs_of_factors_thinned_out_at_random(tmp_path: Path) -> None:
    base = {"a": cast(np.zeros((300, 200)), "f32")}
    packs = [factor_pack(tmp_path, base, {"a": low(base["a"], seed)}, f"p{seed}") for seed in (1, 2)]
    out = tmp_path / "merged.safetensors"
    deltapack.merge(tmp_path / "base.safetensors", packs, out, method="dare_linear", density=0.25, force=True)
    changed = np.count_nonzero(read_file(out)["a"].bits) / 60_000
    assert abs(changed - (1 - 0.75**2)) < 0.02


def test_elements_that_are_not_numbers_get_no_factors(tmp_path: Path) -> None:
    base = {"a": random_tensor(0, (64, 48), "bf16")}
    base["a"].bits[5, 6] = 0xFFC1  # a NaN that arithmetic does not give
    fine = {"a": low(base["a"], 1)}
    fine["a"].bits[5, 6] = 0xFFC1
    pack = factor_pack(tmp_path, base, fine)
    with PackReader(pack) as reader:
        assert [[term.values for term in entry.terms] for entry in reader.index.entries] == [["int4"]]
    assert apply(tmp_path, pack)["a"].bits[5, 6] == 0xFFC1
