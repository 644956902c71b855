"""Tensors of base + pack one by one: the bits that all of them at once have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.builders import CHUNK, bytes_of, edited, mixed_model, random_tensor, tuned_model, write_file
from support.fixtures import PackOf

import deltapack
from deltapack.errors import BaseMismatchError
from deltapack.live.lazily import open_lazily


@pytest.mark.parametrize("workers", [1, 3])
def test_tensors_one_by_one(pack_of: PackOf, workers: int) -> None:
    base = mixed_model() | {"long": random_tensor(1, (2 * CHUNK + 5,), "bf16")}
    pack = pack_of(base, tuned_model(base) | {"new": random_tensor(8, (7,))}, drop_rate=0.5)
    where = pack.parent / "base.safetensors"
    wanted = deltapack.load_state_dict(where, pack)
    with open_lazily(where, pack, workers=workers) as lazy:
        assert lazy.jobs.keys() == wanted.keys() and "new" in wanted
        for name, tensor in wanted.items():
            made = lazy.tensor(name)
            assert (made.dtype, made.shape, bytes_of(made)) == (tensor.dtype, tensor.shape, bytes_of(tensor))
        assert lazy.metadata["deltapack.fidelity"] == "lossy" and lazy.config() == {}


def test_a_tensor_of_another_base_is_found_when_it_is_made(pack_of: PackOf, tmp_path: Path) -> None:
    base = mixed_model()
    pack = pack_of(base, tuned_model(base), drop_rate=0.5)
    where = write_file(tmp_path / "other.safetensors", base | {"a": edited(base["a"], 7, 0)})
    with open_lazily(where, pack) as lazy:
        assert isinstance(lazy.tensor("b"), torch.Tensor)
        with pytest.raises(BaseMismatchError, match="other content") as caught:
            lazy.tensor("a")
        assert (caught.value.tensor, caught.value.rule) == ("a", "R12")
