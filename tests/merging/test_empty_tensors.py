"""Tensors without elements, for which a pack of others may have terms."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard
from support.builders import moved, random_tensor, read_model, write_file
from support.fixtures import PackOf
from support.mutants import index_of
from support.small_packs import seal

import deltapack
from deltapack.format.canonical import dump_canonical
from deltapack.format.digest import fingerprint, hash64, root_digest
from deltapack.merging.methods.table import METHODS


def pack_without_rows(pack: Path, name: str) -> None:
    """Let the pack say that the only tensor has lost all rows, with a term whose kept elements depend on data."""
    index = index_of(pack.read_bytes())
    old = index["tensors"][0]
    shape = (0, *old["shape"][1:])
    digest = root_digest(old["dtype"], shape, ())
    base = {"digest": old["base"]["digest"], "shape": old["shape"]}
    term = {"blob": [64, 0, f"{hash64(b''):016x}"], "factor": "40000000", "index": "gaps", "nnz": 0, "shift": 0, "values": "sign"}
    entry = {"base": base, "digest": digest, "dtype": old["dtype"], "kind": "shrunk", "name": name, "shape": list(shape), "terms": [term]}
    index["tensors"] = [entry]
    index["result"] = {"bytes": 0, "tensors": 1, "fingerprint": fingerprint([(name, old["dtype"], shape, digest)])}
    raw = dump_canonical(index)
    pack.write_bytes(seal(b"", zstandard.ZstdCompressor().compress(raw), len(raw)))


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_lost_all_rows_is_merged(pack_of: PackOf, tmp_path: Path, method: str) -> None:
    base = {"w": random_tensor(1, (6, 5))}
    tuned = {"w": moved(base["w"], 2)}
    packs = [pack_of(base, tuned, f"{number}", drop_rate=0.5, seed=number) for number in range(2)]
    for pack in packs:
        pack_without_rows(pack, "w")
    deltapack.merge(write_file(tmp_path / "base.safetensors", base), packs, tmp_path / "out.safetensors", method=method)
    assert read_model(tmp_path / "out.safetensors")["w"].shape == (0, 5)
