"""Tensors in memory become the fine-tune's, bit for bit, or stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import builders
from support.builders import CHUNK, Model, moved, random_tensor, whole

import deltapack
from deltapack.errors import BaseMismatchError, ChecksumError, FormatError, RecipeError

PackOf = Callable[..., Path]
State = dict[str, NDArray[Any]]


def base_model() -> Model:
    return {
        "big": random_tensor(1, (CHUNK + 5, 2), "bf16"),
        "half": random_tensor(2, (300, 7), "f16"),
        "tiny": random_tensor(3, (1,), "f8_e5m2"),
        "wide": random_tensor(4, (2000,), "f64"),
        "same": random_tensor(5, (20, 3)),
        "gone": random_tensor(6, (5,)),
        "ints": whole("i32", np.arange(6), (2, 3)),
    }


def tuned_model() -> Model:
    base = base_model()
    tuned = {name: moved(tensor, 9) for name, tensor in base.items() if tensor.dtype.startswith(("f", "b"))}
    del tuned["gone"]
    return tuned | {"same": base["same"], "ints": whole("i32", np.arange(6) + 1, (2, 3)), "new": random_tensor(7, (4,))}


def state_of(model: Model) -> State:
    return {name: tensor.bits.copy() for name, tensor in model.items()}


def as_torch(tensor: builders.Tensor) -> torch.Tensor:
    elements = torch.from_numpy(tensor.bits.view(f"i{tensor.bits.itemsize}") if tensor.dtype == "bf16" else tensor.bits.copy())
    return elements.view(builders.TORCH.get(tensor.dtype, elements.dtype))


def bits_of(state: dict[str, Any]) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(array).tobytes() for name, array in state.items()}


def restored(base: Path, pack: Path, out: Path, **options: Any) -> dict[str, bytes]:
    deltapack.apply(base, pack, out, **options)
    return {name: tensor.raw for name, tensor in builders.read_file(out).items()}


@pytest.fixture
def pack(pack_of: PackOf) -> Path:
    return pack_of(base_model(), tuned_model(), drop_rate=0.8)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("loaded", [False, True])
def test_the_state_becomes_what_apply_writes(pack: Path, tmp_path: Path, workers: int, loaded: bool) -> None:
    expected = restored(tmp_path / "base.safetensors", pack, tmp_path / "out.safetensors")
    state = state_of(base_model())
    places = {name: array.ctypes.data for name, array in state.items()}
    with deltapack.open_pack(pack) as opened:
        target = opened.load() if loaded else opened
        target.add_to(state, workers=workers)
    assert bits_of(state) == expected
    assert all(state[name].ctypes.data == places[name] for name in ("big", "half", "tiny", "wide", "same"))


@pytest.mark.parametrize("index", ["gaps", "bitmap"])
@pytest.mark.parametrize("values", ["bf16", "int8", "sign"])
def test_every_codec(pack_of: PackOf, tmp_path: Path, index: str, values: str) -> None:
    base = {"w": random_tensor(1, (500, 300), "bf16")}
    pack = pack_of(base, {"w": moved(base["w"], 2)}, drop_rate=0.7, index=index, values=values)
    state = state_of(base)
    with deltapack.open_pack(pack) as opened:
        opened.load().add_to(state)
    assert bits_of(state) == restored(tmp_path / "base.safetensors", pack, tmp_path / "out.safetensors")


def test_a_weight(pack_of: PackOf, tmp_path: Path) -> None:
    base = {"w": random_tensor(1, (500, 300))}
    pack, state = pack_of(base, {"w": moved(base["w"], 2)}), state_of(base)
    with deltapack.open_pack(pack) as opened:
        opened.add_to(state, weight=0.3)
    expected = restored(tmp_path / "base.safetensors", pack, tmp_path / "out.safetensors", weight=0.3)
    assert bits_of(state) == expected


def test_torch_tensors_keep_their_memory(pack: Path, tmp_path: Path) -> None:
    expected = restored(tmp_path / "base.safetensors", pack, tmp_path / "out.safetensors")
    state: dict[str, Any] = {name: as_torch(tensor) for name, tensor in base_model().items()}
    places = {name: tensor.data_ptr() for name, tensor in state.items()}
    with deltapack.open_pack(pack) as opened:
        opened.add_to(state)
    assert state["big"].dtype == torch.bfloat16
    for name in ("big", "half", "tiny", "wide", "same"):
        assert state[name].data_ptr() == places[name]
        assert state[name].contiguous().view(torch.uint8).numpy().tobytes() == expected[name]


def refused(pack: Path, state: dict[str, Any], kind: type[Exception], match: str, **options: Any) -> None:
    before = bits_of(state)
    with deltapack.open_pack(pack) as opened, pytest.raises(kind, match=match):
        opened.add_to(state, **options)
    assert bits_of(state) == before


def test_another_base_is_refused_before_anything_changes(pack: Path) -> None:
    state = state_of(base_model())
    state["same"][0, 0] += 1
    refused(pack, state, BaseMismatchError, "other content")
    before = bits_of(state)
    with deltapack.open_pack(pack) as opened:
        opened.add_to(state, verify=False)
    after = bits_of(state)
    assert after["same"] == before["same"] and after["big"] != before["big"]


def test_a_state_that_was_patched_already_is_refused(pack_of: PackOf) -> None:
    base = {"w": random_tensor(1, (500, 300))}
    pack, state = pack_of(base, {"w": moved(base["w"], 2)}), state_of(base)
    with deltapack.open_pack(pack) as opened:
        opened.add_to(state)
    refused(pack, state, BaseMismatchError, "other content")


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (lambda state: state.pop("half"), BaseMismatchError, "no such array"),
        (lambda state: state.update(half=state["half"].T.copy()), BaseMismatchError, "shape|expected"),
        (lambda state: state.update(half=state["half"].astype(np.float32)), BaseMismatchError, "float32"),
        (lambda state: state.update(half=[1, 2]), BaseMismatchError, "no such array"),
        (lambda state: state.update(other=np.zeros(3)), BaseMismatchError, "does not know"),
        (lambda state: state.update(half=np.asfortranarray(state["half"])), RecipeError, "contiguous"),
        (lambda state: state["half"].setflags(write=False), RecipeError, "writable"),
    ],
)
def test_states_that_do_not_fit(pack: Path, change: Callable[[State], object], kind: type[Exception], match: str) -> None:
    state = state_of(base_model())
    change(state)
    before = {name: array for name, array in state.items() if name != "half"}
    with deltapack.open_pack(pack) as opened, pytest.raises(kind, match=match):
        opened.add_to(state)
    assert bits_of(before) == {name: tensor.raw for name, tensor in base_model().items() if name in before} | (
        {"other": np.zeros(3).tobytes()} if "other" in state else {}
    )


def test_what_cannot_be_done_in_place(pack_of: PackOf) -> None:
    base = {"w": random_tensor(1, (60, 20))}
    grown = {"w": random_tensor(1, (66, 20))}
    grown["w"].bits[:60] = moved(base["w"], 3).bits
    refused(pack_of(base, grown), state_of(base), RecipeError, "grown")
    cast = {"w": builders.cast(moved(base["w"], 3).bits, "bf16")}
    refused(pack_of(base, cast, "cast", force=True), state_of(base), RecipeError, "type")
    whole_pack = pack_of(base, {"w": moved(base["w"], 3)}, "stored", exclude="w")
    refused(whole_pack, state_of(base), RecipeError, "weighted", weight=0.5)


def test_a_damaged_pack(pack: Path) -> None:
    data = bytearray(pack.read_bytes())
    with deltapack.open_pack(pack) as opened:
        blob = opened["big"].entry.terms[0].blob
    data[blob.end - 10] ^= 1
    pack.write_bytes(data)
    with deltapack.open_pack(pack) as opened:
        with pytest.raises(ChecksumError, match="damaged"):
            opened.add_to(state_of(base_model()))
        with pytest.raises(FormatError, match="damaged"):
            opened.load()
