"""What the index of a pack says, against what the compression said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import deltapack
from deltapack.errors import FormatError
from deltapack.packs.inspecting import inspect_pack


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> deltapack.CompressReport:
    folder = tmp_path_factory.mktemp("pair")
    random = np.random.default_rng(1)
    base = {"w": random.normal(size=(30, 40)), "v": random.normal(size=100), "same": np.ones(3)}
    tuned = {name: array + 1e-3 * random.normal(size=array.shape) for name, array in base.items() if name != "same"}
    for name, tensors in (("a", base), ("b", tuned | {"same": base["same"], "new": np.zeros(4)})):
        arrays = {key: array.astype(np.float32) for key, array in tensors.items()}
        save_file(arrays, folder / f"{name}.safetensors")
    recipe = deltapack.Recipe(drop_rate=0.8, values="int8", index="gaps", overrides=(deltapack.Override("v", drop_rate=0, role="weight"),))
    return deltapack.compress(folder / "a.safetensors", folder / "b.safetensors", folder / "x.dpk", recipe=recipe)


def test_agrees_with_the_compression(report: deltapack.CompressReport) -> None:
    summary = inspect_pack(report.pack)
    assert summary.pack_bytes == report.pack_bytes == report.pack.stat().st_size
    assert summary.checkpoint_bytes == report.checkpoint_bytes
    assert summary.ratio == report.ratio
    assert summary.delta_elements == report.delta_elements == 1300
    assert summary.delta_bits_per_weight == report.delta_bits_per_weight
    assert summary.kinds == report.kinds == {"delta": 2, "stored": 1, "unchanged": 1}
    assert summary.max_abs_delta == report.max_abs_delta
    assert summary.split["files"] == report.split["files"] == 0
    assert sum(summary.split.values()) == summary.pack_bytes
    assert summary.files == ()


def test_tensors(report: deltapack.CompressReport) -> None:
    summary = inspect_pack(report.pack)
    rows = {tensor.name: tensor for tensor in summary.tensors}
    assert list(rows) == ["new", "same", "v", "w"]
    assert (rows["v"].index_codecs, rows["w"].index_codecs) == (("all",), ("gaps",))
    assert (rows["v"].nnz, rows["v"].elements, rows["v"].factors) == (100, 100, (1.0,))
    assert rows["w"].factors == (5.0,)
    assert rows["new"].stored_bytes > 0 and rows["new"].elements == 0 and rows["new"].max_abs_delta is None
    assert (rows["same"].dtype, rows["same"].shape, rows["same"].base_name) == ("f32", (3,), "same")
    assert summary.nnz == rows["v"].nnz + rows["w"].nnz
    assert {name: tensor.role for name, tensor in rows.items()} == {"new": "vector", "same": "vector", "v": "vector", "w": "weight"}
    assert summary.density == summary.nnz / 1300
    assert summary.index_codecs == {"all": 1, "gaps": 1}
    assert summary.value_codecs == {"int8": 2}


def test_reads_the_index_alone(report: deltapack.CompressReport, tmp_path: Path) -> None:
    data = bytearray(report.pack.read_bytes())
    data[80] ^= 1  # inside the first blob
    damaged = tmp_path / "x.dpk"
    damaged.write_bytes(data)
    assert inspect_pack(damaged).id == inspect_pack(report.pack).id
    with pytest.raises(FormatError):
        inspect_pack(tmp_path / "missing.dpk")
