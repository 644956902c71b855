"""A merged pack covers every tensor of its base, also those that the packs drop in different ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.builders import Model, Tensor, read_model, write_file
from vectors.assemble import Pack
from vectors.assemble import Tensor as Elements
from vectors.valid import floats, term

import deltapack

STORAGE = {"bf16": "<u2"}
Y, W = floats("bf16", (4, 3)), floats("bf16", (2, 2), 3)
RENAMES = Pack().patched("x", Y, [term("all", "int8", list(range(12)))], base_name="y").alias("w", "x", over=W)
REMOVES = Pack().unchanged("y", Y).removed("w", W)
REPLACES = Pack().unchanged("y", Y).stored("w", floats("f32", (3,), 8), over=W)
MOVES = Pack().unchanged("y", Y).unchanged("w.renamed", W, "w")


def model(**tensors: Elements) -> Model:
    return {
        name: Tensor(found.dtype, np.frombuffer(found.data, STORAGE[found.dtype]).reshape(found.shape)) for name, found in tensors.items()
    }


@pytest.mark.parametrize(
    ("packs", "prefer"),
    [((RENAMES, REMOVES), None), ((REMOVES, RENAMES), None), ((REPLACES, MOVES), 1), ((MOVES, REPLACES), 0)],
    ids=["tied, removed", "removed, tied", "stored, renamed", "renamed, stored"],
)
def test_every_tensor_of_the_base_is_covered(packs: tuple[Pack, Pack], prefer: int | None, tmp_path: Path) -> None:
    base = write_file(tmp_path / "base.safetensors", model(y=Y, w=W))
    paths = [tmp_path / f"{number}.dpk" for number in range(2)]
    for path, pack in zip(paths, packs, strict=True):
        path.write_bytes(pack.build())
    preferred = None if prefer is None else paths[prefer]
    deltapack.merge(base, paths, tmp_path / "direct.safetensors", prefer=preferred)
    deltapack.merge(base, paths, tmp_path / "merged.dpk", prefer=preferred)
    assert deltapack.verify(tmp_path / "merged.dpk", base).result_digests
    deltapack.apply(base, tmp_path / "merged.dpk", tmp_path / "applied.safetensors")
    assert read_model(tmp_path / "applied.safetensors") == read_model(tmp_path / "direct.safetensors")
