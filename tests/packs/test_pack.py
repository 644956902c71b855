from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support.builders import CHUNK, cast, moved, random_tensor, small_model, tuned_model, whole
from support.fixtures import PackOf

import deltapack
from deltapack.errors import RecipeError


@pytest.fixture
def pack(pack_of: PackOf) -> Path:
    base = {
        "cube": random_tensor(1, (7, 11, 13), "bf16"),
        "matrix": random_tensor(2, (1100, 1000), "f16"),
        "vector": random_tensor(3, (900,)),
        "scalar": cast(np.array(1.0), "f64"),
        "same": random_tensor(4, (20, 3)),
        "rows": random_tensor(5, (60, 20)),
        "less": random_tensor(6, (60, 20)),
        "gone": random_tensor(7, (5,)),
        "ints": whole("i32", np.arange(6), (2, 3)),
        "no rows": random_tensor(8, (0, 5)),
    }
    tuned = {name: moved(tensor, 9) for name, tensor in base.items() if tensor.dtype.startswith(("f", "b"))}
    tuned |= {"same": base["same"], "ints": whole("i32", np.arange(6) + 1, (2, 3)), "scalar": base["scalar"]}
    tuned["rows"] = random_tensor(5, (66, 20))
    tuned["rows"].bits[:60] = moved(base["rows"], 3).bits
    tuned["less"] = moved(random_tensor(6, (50, 20)), 3)
    del tuned["gone"]
    return pack_of(base, tuned, drop_rate=0.8, values="int8")


def test_it_is_a_mapping(pack: Path) -> None:
    with deltapack.open_pack(pack) as opened:
        assert isinstance(opened, Mapping)
        assert list(opened) == sorted(opened) == [entry.name for entry in opened.index.entries]
        assert len(opened) == 10 and "matrix" in opened and "nothing" not in opened
        with pytest.raises(KeyError):
            opened["nothing"]
        assert {name: entry.kind for name, entry in opened.items()} == {
            "cube": "delta",
            "gone": "removed",
            "ints": "stored",
            "less": "shrunk",
            "matrix": "delta",
            "no rows": "unchanged",
            "rows": "grown",
            "same": "unchanged",
            "scalar": "unchanged",
            "vector": "delta",
        }
        assert opened.path == pack and len(opened.id) == 64
        assert str(pack) in repr(opened) and "matrix" in repr(opened["matrix"])
        matrix = opened["matrix"]
        assert (matrix.dtype, matrix.shape, matrix.name) == ("f16", (1100, 1000), "matrix")
        assert 0 < sum(entry.stored_bytes for entry in opened.values()) < pack.stat().st_size
        assert opened["same"].stored_bytes == opened["same"].nnz == 0


def test_views_agree(pack: Path) -> None:
    with deltapack.open_pack(pack) as opened:
        for name in ("cube", "matrix", "vector", "same", "rows", "less", "no rows", "scalar"):
            entry = opened[name]
            positions, values = entry.to_sparse()
            assert positions.dtype == np.int64 and values.dtype == np.float32
            assert len(positions) == len(values) == entry.nnz
            assert (np.diff(positions) > 0).all()
            dense = entry.to_dense()
            assert dense.dtype == np.float32 and dense.shape == entry.shape
            if name == "rows":
                dense[60:] = 0
            flat = dense.reshape(-1)
            assert np.array_equal(flat[positions], values) and np.count_nonzero(flat) == np.count_nonzero(values)
            sparse = entry.to_scipy()
            rows = entry.shape[0] if len(entry.shape) > 1 else 1
            assert sparse.shape == (rows, flat.size // rows if rows else 0) and sparse.nnz == entry.nnz
            assert sparse.has_sorted_indices and np.array_equal(sparse.toarray().reshape(-1), flat)
            tensor = entry.to_torch_sparse()
            assert tensor.is_coalesced() and tensor.shape == torch.Size(entry.shape)
            assert np.array_equal(tensor.to_dense().numpy(), dense)


def test_the_difference_is_rescaled(pack_of: PackOf) -> None:
    base = {"w": cast(np.zeros(CHUNK + 9), "f32")}
    with deltapack.open_pack(pack_of(base, {"w": cast(np.ones(CHUNK + 9), "f32")}, drop_rate=0.75, values="f32")) as pack:
        positions, values = pack["w"].to_sparse()
        assert set(values) == {np.float32(4)}
        assert positions[-1] >= CHUNK - 100 and abs(len(positions) / (CHUNK + 9) - 0.25) < 0.003


def test_terms_of_a_merged_pack_are_summed(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"w": random_tensor(1, (5000,))}
    packs = [pack_of(base, {"w": moved(base["w"], seed)}, f"{seed}", drop_rate=0.5) for seed in (1, 2)]
    deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "merged.dpk", weights=[0.5, 2])
    dense = []
    for path in (*packs, tmp_path / "merged.dpk"):
        with deltapack.open_pack(path) as pack:
            dense.append(pack["w"].to_dense().astype(np.float32, copy=False))
    # The weights are powers of two, so that weighting rounds nothing.
    assert np.array_equal(dense[2], dense[0] * np.float32(0.5) + dense[1] * np.float32(2))


def test_stored_and_removed_entries(pack: Path) -> None:
    with deltapack.open_pack(pack) as opened:
        assert np.array_equal(opened["ints"].to_dense(), np.arange(6).reshape(2, 3) + 1)
        for name in ("ints", "gone"):
            for view in ("to_sparse", "to_scipy", "to_torch_sparse"):
                with pytest.raises(RecipeError, match=opened[name].kind):
                    getattr(opened[name], view)()
        with pytest.raises(RecipeError):
            opened["gone"].to_dense()
        assert "gone" in repr(opened["gone"])


def test_it_goes_to_a_device(pack: Path) -> None:
    with deltapack.open_pack(pack) as opened:
        resident = opened.to("cpu")
        terms = [term for entry in opened.values() for term in entry.entry.terms]
        assert set(resident.terms) == set(terms) and resident.device == torch.device("cpu")
        assert 0 < resident.nbytes < 2 * sum(part.nbytes for term in resident.terms.values() for part in term.segments)
        with pytest.raises(RecipeError, match="not the name of a device"):
            opened.to("nonsense")


def test_a_closed_pack(pack_of: PackOf) -> None:
    """What it says of itself stays; its tensors cannot be read, and the error says why."""
    base = small_model()
    path = pack_of(base, tuned_model(base))
    with deltapack.open_pack(path) as pack:
        entry = pack["layer.weight"]
        assert len(entry.to_sparse()[0]) == entry.nnz
    assert len(pack) == len(base) and pack.id and entry.shape == (257, 259)
    pack.close()
    state = {name: tensor.bits.copy() for name, tensor in base.items()}
    for read in (entry.to_sparse, entry.to_dense, pack.load, lambda: pack.add_to(state)):
        with pytest.raises(RecipeError, match="the pack is closed") as caught:
            read()
        assert caught.value.path == path
    assert all(state[name].tobytes() == tensor.raw for name, tensor in base.items())
