"""Packs of a budget (factors, trits in strata, levels) on a live model and in direct loading, by the engines of devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support.builders import TORCH, Model, Tensor, bytes_of, cast, moved, random_tensor, read_file, write_file
from support.interpreting import DEVICE

import deltapack
from deltapack.format.reader import PackReader
from deltapack.packing.budget import Budget

pytestmark = pytest.mark.slow

EMBEDDING, DOWN, UP, NORM = (
    "model.embed_tokens.weight",
    *(f"model.layers.0.{name}.weight" for name in ("mlp.down_proj", "mlp.up_proj", "norm")),
)


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "triton":
        pytest.importorskip("triton")
    return str(request.param)


@pytest.fixture
def base(tmp_path: Path) -> Model:
    shapes = {EMBEDDING: ((600, 64), "bf16"), DOWN: ((300, 210), "bf16"), UP: ((210, 300), "f32"), NORM: ((64,), "bf16")}
    tensors = {name: random_tensor(seed, shape, dtype) for seed, (name, (shape, dtype)) in enumerate(shapes.items())}
    write_file(tmp_path / "base.safetensors", tensors)
    return tensors


@pytest.fixture
def packs(tmp_path: Path, base: Model) -> list[Path]:
    """Two packs that together have all that is new in packs of a budget."""
    made = [pack_of(tmp_path, base, seed, bits) for seed, bits in ((1, 1.5), (2, 0.3))]
    found = set[str]()
    for pack in made:
        with PackReader(pack) as reader:
            found |= {codec for entry in reader.index.entries for term in entry.terms for codec in (term.index, term.values, term.scales)}
    assert found >= {"stratified", "factors", "ternary", "uniform", "tensor"}
    return made


def pack_of(folder: Path, base: Model, seed: int, bits: float) -> Path:
    rng, tuned = np.random.default_rng(seed), {}
    for name, tensor in base.items():
        change = rng.normal(0, 0.01, tensor.shape)
        if name != NORM:
            change += 0.05 * np.outer(*(rng.normal(0, 1, size) for size in tensor.shape))
        tuned[name] = moved(tensor, seed) if name == NORM else cast(tensor.f64 + change, tensor.dtype)
    path = write_file(folder / f"{seed}.safetensors", tuned)
    deltapack.compress(folder / "base.safetensors", path, folder / f"{seed}.dpk", recipe=deltapack.Recipe(budget=Budget(bits=bits)))
    return folder / f"{seed}.dpk"


def to_torch(tensor: Tensor) -> torch.Tensor:
    raw = torch.from_numpy(tensor.bits.reshape(-1).view(f"i{tensor.bits.itemsize}").copy())
    return raw.view(TORCH[tensor.dtype]).reshape(tensor.shape).to(DEVICE)


def state_of(model: Model) -> dict[str, torch.Tensor]:
    return {name: to_torch(tensor) for name, tensor in model.items()}


def merged(folder: Path, packs: Mapping[Path, float]) -> Model:
    out = folder / "merged.safetensors"
    deltapack.merge(folder / "base.safetensors", list(packs), out, weights=list(packs.values()), force=True, device="cpu", backend="cpu")
    return read_file(out)


def same(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(bytes_of(state[name]) == bytes_of(other[name]) for name in state)


def test_whole_tensors_and_direct_loading(tmp_path: Path, base: Model, packs: list[Path], backend: str) -> None:
    state, (one, two) = state_of(base), packs
    live = deltapack.attach(state, backend=backend)
    for chosen in ({one: 1.0}, {two: 0.5, one: -1.5}):
        live.activate(chosen)
        wanted = state_of(merged(tmp_path, chosen))
        assert same(state, wanted)
        loaded = deltapack.load_state_dict(tmp_path / "base.safetensors", chosen, backend=backend, device=DEVICE)
        assert same(loaded, wanted)
    live.deactivate()
    assert same(state, state_of(base)) and live.undo_bytes == 0


def test_a_rank_of_a_tensor_parallel_model(tmp_path: Path, base: Model, packs: list[Path], backend: str) -> None:
    """It holds columns of one matrix and rows of another, and so a slice of each factor, of strata and of levels."""
    slices = {
        EMBEDDING: (slice(300, 600), slice(None)),
        DOWN: (slice(None), slice(105, 210)),
        UP: (slice(105, 210), slice(None)),
        NORM: (slice(None),),
    }

    def shard(model: Model) -> dict[str, torch.Tensor]:
        return {name: tensor[slices[name]].contiguous() for name, tensor in state_of(model).items()}

    state = shard(base)
    names = {name: deltapack.Slice(name, of=piece) for name, piece in slices.items()}
    live = deltapack.attach(state, tmp_path / "base.safetensors", names=names, backend=backend)
    live.activate({packs[0]: 0.5, packs[1]: 1.0})
    assert same(state, shard(merged(tmp_path, {packs[0]: 0.5, packs[1]: 1.0})))
    live.deactivate()
    assert same(state, shard(base))
