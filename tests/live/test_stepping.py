"""A live model along a chain of packs: the bits of every step, forwards and backwards, in the same memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.builders import TORCH, Model, Tensor, bytes_of, edited, moved, random_tensor, read_file, write_file

import deltapack
from deltapack import Recipe
from deltapack.errors import BaseMismatchError, FormatError, RecipeError, UnsupportedError

COUNT = 4
BASE: Model = {"w": random_tensor(1, (70, 41), "bf16"), "v": random_tensor(2, (300,), "f32"), "same": random_tensor(3, (9,), "f16")}


def states() -> list[Model]:
    """The base, and what each pack makes of the one before; one of them leaves a tensor alone."""
    out = [BASE]
    for number in range(1, COUNT + 1):
        last = out[-1]
        changed = {"w": moved(last["w"], number)} | ({"v": edited(last["v"], 3, float(number))} if number != 2 else {})
        out.append({**last, **changed})
    return out


STATES = states()


def to_torch(tensor: Tensor) -> torch.Tensor:
    integer = {1: "u1", 2: "i2", 4: "i4", 8: "i8"}[tensor.bits.dtype.itemsize]
    flat = torch.from_numpy(tensor.bits.reshape(-1).view(integer).copy())
    return flat.view(TORCH.get(tensor.dtype, flat.dtype)).reshape(tensor.shape)


def held(model: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: bytes_of(tensor) for name, tensor in model.items()}


def raw(model: Model) -> dict[str, bytes]:
    return {name: tensor.raw for name, tensor in model.items()}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("chain")
    files = [write_file(folder / f"{number}.safetensors", state) for number, state in enumerate(STATES)]
    packs: list[Path] = []
    for number, file in enumerate(files[1:], 1):
        pack = folder / f"{number}.dpk"
        deltapack.compress(files[0], file, pack, recipe=Recipe(exact=True), base_packs=packs)
        packs.append(pack)
    return packs


@pytest.fixture
def model() -> dict[str, torch.Tensor]:
    return {name: to_torch(tensor) for name, tensor in BASE.items()}


@pytest.mark.parametrize("undo", ["auto", "copy", "log"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_forwards_and_backwards(chain: list[Path], model: dict[str, torch.Tensor], backend: str, undo: Any) -> None:
    places = {name: tensor.data_ptr() for name, tensor in model.items()}
    live = deltapack.attach(model, backend=backend, undo=undo)
    for number, pack in enumerate(chain, 1):
        live.step(pack)
        assert held(model) == raw(STATES[number])
    assert live.steps == tuple(pack.resolve() for pack in chain)
    assert live.undo_bytes > 0
    for number in (3, 2):
        live.back()
        assert held(model) == raw(STATES[number])
    live.step(chain[2])
    assert held(model) == raw(STATES[3])
    live.deactivate()
    live.back()  # there is nothing to undo
    assert (held(model), live.steps, live.undo_bytes) == (raw(BASE), (), 0)
    assert {name: tensor.data_ptr() for name, tensor in model.items()} == places


def test_a_lossy_pack_is_a_step(chain: list[Path], model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    base = chain[0].parent / "0.safetensors"
    deltapack.compress(base, base.parent / "4.safetensors", tmp_path / "lossy.dpk", base_packs=chain[:2], recipe=Recipe(drop_rate=0.5))
    deltapack.apply(base, [*chain[:2], tmp_path / "lossy.dpk"], tmp_path / "out.safetensors")
    live = deltapack.attach(model)
    for pack in (*chain[:2], tmp_path / "lossy.dpk"):
        live.step(pack)
    assert held(model) == raw(read_file(tmp_path / "out.safetensors"))


def test_what_does_not_follow_is_refused(chain: list[Path], model: dict[str, torch.Tensor]) -> None:
    live = deltapack.attach(model)
    for act in (live.step, live.activate):
        with pytest.raises(BaseMismatchError, match=r"other content.*follows another one.*`live\.step` takes that one first.*squash"):
            act(chain[1])
    live.step(chain[0])
    for wrong in (chain[0], chain[2]):
        with pytest.raises(BaseMismatchError, match="does not follow"):
            live.step(wrong)
    assert held(model) == raw(STATES[1])
    live.step(chain[1])
    assert held(model) == raw(STATES[2])


def test_a_chain_is_no_sum(chain: list[Path], model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    base, live = chain[0].parent / "0.safetensors", deltapack.attach(model)
    for act in (
        lambda: live.activate(chain[:2]),
        lambda: deltapack.load_state_dict(base, chain[:2]),
        lambda: deltapack.merge(base, [chain[1], chain[0]], tmp_path / "out"),
    ):
        with pytest.raises(BaseMismatchError, match=r"different bases.*They are a chain.*`live\.step`.*`deltapack squash`"):
            act()
    with pytest.raises(BaseMismatchError, match=r"different bases.*Packs can be merged only if"):
        live.activate([chain[0], chain[2]])
    assert held(model) == raw(BASE)


def test_a_closed_one_takes_no_packs(chain: list[Path], model: dict[str, torch.Tensor]) -> None:
    live = deltapack.attach(model)
    live.step(chain[0])
    live.close()
    for act in (live.step, live.activate, live.load):
        with pytest.raises(RecipeError, match="the live model is closed"):
            act(chain[0])
    live.deactivate()
    live.close()
    assert (held(model), live.steps) == (raw(BASE), ())
    live = deltapack.attach(model)
    live.activate({chain[0]: 0.5})
    with live.activate(chain[0]):
        live.close()
    assert held(model) == raw(BASE) and live.current == {}


def test_steps_and_active_packs_do_not_mix(chain: list[Path], model: dict[str, torch.Tensor]) -> None:
    live = deltapack.attach(model)
    live.activate(chain[0])
    with pytest.raises(RecipeError, match="packs are active"):
        live.step(chain[1])
    live.deactivate()
    live.step(chain[0])
    with pytest.raises(RecipeError, match="steps of a chain"):
        live.activate(chain[0])
    with pytest.raises(RecipeError, match="cannot be unloaded"):
        live.unload(chain[0])
    live.back()
    live.activate(chain[0])
    assert held(model) == raw(STATES[1])


def test_a_scope_ends_where_it_began(chain: list[Path], model: dict[str, torch.Tensor]) -> None:
    live = deltapack.attach(model)
    with live.activate(chain[0]):
        live.deactivate()
        for pack in chain[:2]:
            live.step(pack)
    assert (held(model), live.steps) == (raw(BASE), ())


def test_after_an_error_the_model_is_as_it_was(chain: list[Path], model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    grown = {**STATES[1], "v": random_tensor(9, (301,), "f32")}
    base = chain[0].parent / "0.safetensors"
    file = write_file(tmp_path / "grown.safetensors", grown)
    deltapack.compress(base, file, tmp_path / "g.dpk", recipe=Recipe(exact=True), base_packs=chain[:1])
    live = deltapack.attach(model)
    live.step(chain[0])
    with pytest.raises(UnsupportedError):
        live.step(tmp_path / "g.dpk")
    assert held(model) == raw(STATES[1])
    data = bytearray(chain[1].read_bytes())
    data[200] ^= 1
    (tmp_path / "bad.dpk").write_bytes(data)
    with pytest.raises(FormatError):
        live.step(tmp_path / "bad.dpk")
    assert held(model) == raw(STATES[1])
    live.step(chain[1])
    assert held(model) == raw(STATES[2])
