"""Exact packs on tensors in memory: `add_to` gives the fine-tune's bits where it can be done in place, and else changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import CHUNK, Model, Tensor, cast, edited, moved, random_tensor, whole
from support.fixtures import PackOf

import deltapack
from deltapack.errors import BaseMismatchError, ChecksumError, RecipeError

State = dict[str, Any]


def base_model() -> Model:
    return {
        "big": Tensor("bf16", np.arange(2 * (CHUNK + 5), dtype="<u2").reshape(-1, 2) % 0x4000),
        "half": random_tensor(2, (300, 7), "f16"),
        "odd": Tensor("f32", np.array([0, 1 << 31, 0x7FC00001, 0xFF800000, 1], "<u4").view("<f4")),
        "wide": random_tensor(4, (2000,), "f64"),
        "same": random_tensor(5, (20, 3)),
        "gone": random_tensor(6, (5,)),
        "ints": whole("i32", np.arange(60), (20, 3)),
        "scalar": cast(np.array(1.0), "f32"),
    }


def tuned_model() -> Model:
    base = base_model()
    tuned = {name: moved(tensor, 9) for name, tensor in base.items() if name in ("half", "wide", "scalar")}
    tuned["big"] = Tensor("bf16", base["big"].bits + (np.arange(2 * (CHUNK + 5)).reshape(-1, 2) % 5 == 0).astype("<u2"))
    tuned["odd"] = Tensor("f32", np.array([1 << 31, 0, 0xFFC00002, 0x7F800000, 0x80000001], "<u4").view("<f4"))
    return tuned | {"same": base["same"], "ints": edited(base["ints"], 3, -5), "new": random_tensor(7, (40,))}


def state_of(model: Model) -> State:
    return {name: tensor.bits.copy() for name, tensor in model.items()}


def bits_of(state: State) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(array).tobytes() for name, array in state.items()}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    from support.builders import write_file

    paths = [write_file(folder / f"{name}.safetensors", model) for name, model in (("base", base_model()), ("tuned", tuned_model()))]
    deltapack.compress(paths[0], paths[1], folder / "x.dpk", recipe=deltapack.Recipe(exact=True))
    return folder / "x.dpk"


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("verify", [True, False])
def test_the_state_becomes_the_fine_tune(pack: Path, workers: int, verify: bool) -> None:
    state = state_of(base_model())
    places = {name: array.ctypes.data for name, array in state.items()}
    with deltapack.open_pack(pack) as opened:
        assert opened["big"].kind == opened["odd"].kind == opened["ints"].kind == "exact"
        opened.add_to(state, workers=workers, verify=verify)
    assert bits_of(state) == {name: tensor.raw for name, tensor in tuned_model().items()}
    assert all(state[name].ctypes.data == places[name] for name in tuned_model() if name != "new")


def test_a_loaded_pack_and_a_second_state(pack: Path) -> None:
    with deltapack.open_pack(pack) as opened:
        loaded = opened.load()
        for _ in range(2):
            state = state_of(base_model())
            loaded.add_to(state)
            assert bits_of(state) == {name: tensor.raw for name, tensor in tuned_model().items()}


def test_another_base_changes_nothing(pack: Path) -> None:
    wrong = base_model() | {"half": edited(base_model()["half"], 5, np.float16(3))}
    state = state_of(wrong)
    with deltapack.open_pack(pack) as opened:
        with pytest.raises(BaseMismatchError) as caught:
            opened.add_to(state)
        assert caught.value.tensor == "half"
        assert bits_of(state) == {name: tensor.raw for name, tensor in wrong.items()}
        changed = state_of(tuned_model() | {"gone": base_model()["gone"]})
        del changed["new"]
        with pytest.raises(BaseMismatchError):
            opened.add_to(changed)


def test_a_weight_needs_apply(pack: Path) -> None:
    state = state_of(base_model())
    with deltapack.open_pack(pack) as opened, pytest.raises(RecipeError, match=r"cannot be weighted in place.*deltapack\.apply"):
        opened.add_to(state, weight=0.5)
    assert bits_of(state) == {name: tensor.raw for name, tensor in base_model().items()}


@pytest.mark.parametrize("how", ["rows", "type"])
def test_other_shapes_and_types_need_apply(pack_of: PackOf, how: str) -> None:
    base = {"w": random_tensor(1, (40, 6)), "v": random_tensor(2, (40,))}
    w = random_tensor(3, (44, 6)) if how == "rows" else cast(base["w"].f64, "bf16")
    tuned = {"w": w, "v": moved(base["v"], 1)}
    if how == "rows":
        w.bits[:40] = base["w"].bits
    state = state_of(base)
    from support.builders import write_file

    folder = pack_of.folder
    paths = [write_file(folder / f"{name}.safetensors", model) for name, model in (("base", base), ("tuned", tuned))]
    deltapack.compress(paths[0], paths[1], folder / "y.dpk", recipe=deltapack.Recipe(exact=True))
    with deltapack.open_pack(folder / "y.dpk") as opened, pytest.raises(RecipeError, match="kind exact changes its shape, type or name"):
        opened.add_to(state)
    assert bits_of(state) == {name: tensor.raw for name, tensor in base.items()}


def test_damage_is_found(pack: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.dpk"
    with deltapack.open_pack(pack) as opened:
        places = [opened[name].entry.exact[0].blob for name in ("big", "half", "new")]
    for ref in places:
        data = bytearray(pack.read_bytes())
        data[ref.end - 1] ^= 4
        broken.write_bytes(data)
        with deltapack.open_pack(broken) as opened, pytest.raises(ChecksumError):
            opened.add_to(state_of(base_model()))
