"""Exact tensors decoded by the torch and the Triton engine: the bits that the host gives, undone exactly, and damage is an error."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.exact_packs import Array, chunks_of, dense_with, restored, tuned_from, weights, write_pack
from support.laws import examples

from deltapack.codecs.exact import FORMS, decode_exact_chunk
from deltapack.codecs.exact_table import LANES
from deltapack.device.backends import choose
from deltapack.device.engine import Engine
from deltapack.device.exact_work import ExactWork
from deltapack.device.regions import region_of
from deltapack.device.resident import ResidentPack, send
from deltapack.device.torch_kernels import BITS
from deltapack.device.work import Saved, UndoMode
from deltapack.dtypes import BY_NAME, DType
from deltapack.errors import FormatError
from deltapack.format.digest import TILE
from deltapack.format.reader import PackReader

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ENGINES = ["torch", "triton"]
TYPES = [dtype for dtype in BY_NAME.values() if hasattr(torch, dtype.torch)]
KINDS = ["any", "equal", "near", "sparse", "far", "stairs", "flips", "classes", "moved", "special"]


def engine_of(name: str) -> Engine:
    if name == "triton":
        pytest.importorskip("triton")
    found = choose(name, torch.device(DEVICE)).engine
    assert found is not None and found.name == name
    return found


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return engine_of(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For packs that are written over and over."""
    return tmp_path_factory.mktemp("packs")


def live_of(elements: Array, dtype: DType) -> torch.Tensor:
    """A tensor on the device that holds elements."""
    bits = torch.from_numpy(elements.view(f"<{'u' if dtype.itemsize == 1 else 'i'}{dtype.itemsize}").copy()).to(DEVICE)
    return bits.view(getattr(torch, dtype.torch))


def bytes_of(live: torch.Tensor) -> bytes:
    return live.contiguous().view(BITS[live.element_size()]).cpu().numpy().tobytes()


def sent(folder: Path, dtype: DType, numel: int, steps: Sequence[Sequence[bytes]], tables: Sequence[bytes] = ()) -> ResidentPack:
    # Small segments, so that streams lie in many of them.
    with PackReader(write_pack(folder / "a.dpk", dtype, numel, steps, tables)) as reader:
        return send(reader, torch.device(DEVICE), 2, segment_bytes=1 << 12)


def switched(engine: Engine, pack: ResidentPack, base: Array, dtype: DType, mode: UndoMode = "auto") -> tuple[bytes, list[Saved]]:
    """Decode over a base, and undo it; return the elements, and what undid it."""
    live, done = live_of(base, dtype), list[Saved]()
    work = ExactWork(region_of(live, (len(base),)), dtype, pack.exact["w"])
    engine.switch([], [work], mode, done)
    found = bytes_of(live)
    engine.switch(done, [], mode, [])
    assert bytes_of(live) == base.tobytes()
    return found, done


def check(name: str, folder: Path, dtype: DType, length: int, kind: str, seed: int) -> None:
    base = weights(dtype, length, seed)
    tuned = tuned_from(base, kind, seed + 1)
    pack = sent(folder, dtype, length, [chunks_of(base, tuned, dtype)])
    assert switched(engine_of(name), pack, base, dtype)[0] == tuned.tobytes()


@examples(75)
@given(dtype=st.sampled_from(TYPES), length=st.integers(1, 600), kind=st.sampled_from(KINDS), seed=st.integers(0, 1 << 30))
def test_the_bits_of_the_host_by_torch(folder: Path, dtype: DType, length: int, kind: str, seed: int) -> None:
    check("torch", folder, dtype, length, kind, seed)


@examples(40)
@given(dtype=st.sampled_from(TYPES), length=st.integers(1, 40), kind=st.sampled_from(KINDS), seed=st.integers(0, 1 << 30))
def test_the_bits_of_the_host_by_triton(folder: Path, dtype: DType, length: int, kind: str, seed: int) -> None:
    """Few numbers: the interpreter takes a millisecond a step."""
    check("triton", folder, dtype, length, kind, seed)


LONG = ["f64", "f32", "c64", "bf16", "f16", "f8_e4m3fn", "u8"]
PAIRS = [(name, kind) for row, name in enumerate(LONG) for column, kind in enumerate(KINDS) if (row + column) % 3 == 0]
"""Each type with every third kind, and each kind with every third type."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_long_chunks_by_torch(folder: Path, name: str, kind: str) -> None:
    """Chunks as the encoder makes them where there is something to win: classes, staircases, planes of tiles, many tiles."""
    dtype = BY_NAME[name]
    base = weights(dtype, TILE + 700, 3)
    tuned = tuned_from(base, kind, 4)
    pack = sent(folder, dtype, len(base), [chunks_of(base, tuned, dtype)])
    assert switched(engine_of("torch"), pack, base, dtype)[0] == tuned.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stairs", "flips", "classes"])
@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_long_chunks_by_triton(folder: Path, name: str, kind: str) -> None:
    """Of two classes, with staircases and far symbols; 32 lanes, so that the interpreter is done soon."""
    dtype = BY_NAME[name]
    base = weights(dtype, 6000, 3)
    tuned = tuned_from(base, kind, 4)
    data, _ = dense_with(chunks_of(base, tuned, dtype)[0], base, dtype, 32, share=False)
    pack = sent(folder, dtype, len(base), [[data]])
    assert switched(engine_of("triton"), pack, base, dtype)[0] == tuned.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["near", "any"])
def test_several_tiles_by_triton(folder: Path, kind: str) -> None:
    dtype = BY_NAME["bf16"]
    base = weights(dtype, TILE + 300, 3)
    tuned = tuned_from(base, kind, 4)
    data = chunks_of(base, tuned, dtype)
    assert FORMS[data[0][0]] == ("dense" if kind == "near" else "planes")
    if kind == "near":
        data = [dense_with(data[0], base, dtype, 32, share=False)[0]]
    assert switched(engine_of("triton"), sent(folder, dtype, len(base), [data]), base, dtype)[0] == tuned.tobytes()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", ["f64", "f32", "bf16", "f8_e5m2", "i16"])
def test_every_number_of_lanes(engine: Engine, folder: Path, name: str, lanes: int, share: bool) -> None:
    """Also fewer numbers than lanes, and tables that chunks share."""
    dtype = BY_NAME[name]
    for length in (3 if lanes < 32 else 20, 33):  # a pack takes no 32 states for three numbers
        base = weights(dtype, length, 1)
        tuned = tuned_from(base, "near", 2)
        dense = chunks_of(base, tuned, dtype)[0]
        if FORMS[dense[0]] == "dense":
            data, tables = dense_with(dense, base, dtype, lanes, share=share)
            pack = sent(folder, dtype, length, [[data]], tables)
            assert switched(engine, pack, base, dtype)[0] == tuned.tobytes()


def test_steps_one_after_the_other(engine: Engine, folder: Path) -> None:
    """Of a chain: each starts from the result of the one before; what undoes them all is what the base was."""
    dtype = BY_NAME["bf16"]
    states = [weights(dtype, 50, 1)]
    for seed, kind in enumerate(["sparse", "near", "sparse", "equal", "any"]):
        states.append(tuned_from(states[-1], kind, seed))
    steps = [chunks_of(before, after, dtype) for before, after in pairwise(states)]
    assert restored(steps, states[0], dtype).tobytes() == states[-1].tobytes()
    for mode in ("auto", "copy", "log"):
        assert switched(engine, sent(folder, dtype, 50, steps), states[0], dtype, mode)[0] == states[-1].tobytes()


def test_few_changes_are_undone_by_few_elements(engine: Engine, folder: Path) -> None:
    dtype = BY_NAME["f32"]
    base = weights(dtype, 3000, 1)
    tuned = base.copy()
    tuned[[7, 900, 2999]] += np.float32(1)
    pack = sent(folder, dtype, 3000, [chunks_of(base, tuned, dtype)])
    for mode, wanted in (("auto", 12), ("log", 12), ("copy", 12000)):
        found, done = switched(engine, pack, base, dtype, mode)  # type: ignore[arg-type]
        assert found == tuned.tobytes() and [saved.nbytes for saved in done] == [wanted]
    done = []
    engine.switch([], [ExactWork(region_of(live_of(base, dtype), (3000,)), dtype, pack.exact["w"])], "nothing", done)
    assert done == []


def test_a_tensor_that_lies_the_other_way_round(engine: Engine, folder: Path) -> None:
    dtype = BY_NAME["f32"]
    base = weights(dtype, 12 * 17, 1)
    tuned = tuned_from(base, "near", 1)
    pack = sent(folder, dtype, 12 * 17, [chunks_of(base, tuned, dtype)])
    live = torch.empty(17, 12, dtype=torch.float32, device=DEVICE).t()
    live.copy_(live_of(base, dtype).view(12, 17))
    done: list[Saved] = []
    engine.switch([], [ExactWork(region_of(live, (12, 17)), dtype, pack.exact["w"])], "auto", done)
    assert bytes_of(live) == tuned.tobytes()
    engine.switch(done, [], "auto", [])
    assert bytes_of(live) == base.tobytes()


def damaged(kind: str, length: int = 60) -> tuple[bytes, Array, DType]:
    dtype = BY_NAME["bf16"]
    base = weights(dtype, length, 1)
    return chunks_of(base, tuned_from(base, kind, 2), dtype)[0], base, dtype


@pytest.mark.parametrize("kind", ["near", "sparse", "any"])
@pytest.mark.parametrize("name", ENGINES)
def test_damage_is_what_it_is_on_the_host(folder: Path, name: str, kind: str) -> None:
    """An error of ours where the host has one, and else the same elements; nothing hangs, and nothing is read out of bounds."""
    data, base, dtype = damaged(kind)
    if name == "triton" and kind == "near":  # a step of the interpreter takes milliseconds, and of one lane there are 60
        data, _ = dense_with(data, base, dtype, 4, share=False)
    rng, engine, errors = np.random.default_rng(0), engine_of(name), 0
    for place in [*range(len(data))] if name == "torch" else rng.integers(0, len(data), 40).tolist():
        broken = bytearray(data)
        broken[place] ^= int(rng.integers(1, 256))
        try:
            wanted: Any = decode_exact_chunk(bytes(broken), base, dtype, len(base)).tobytes()
        except FormatError as error:
            wanted = error.rule
        try:
            found: Any = switched(engine, sent(folder, dtype, len(base), [[bytes(broken)]]), base, dtype)[0]
        except FormatError as error:
            found, errors = error.rule, errors + 1
        assert found == wanted, place
    assert errors > 3


def wrongly_ending(data: bytes, base: Array, dtype: DType) -> bytes:
    """Damage a chunk in a way that only decoding tells."""
    for place in reversed(range(len(data))):
        broken = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            decode_exact_chunk(broken, base, dtype, len(base))
        except FormatError as error:
            if "do not end where they should" in str(error):
                return broken
    raise AssertionError("no such damage")


@pytest.mark.parametrize("kind", ["near", "sparse"])
def test_an_error_names_the_tensor(engine: Engine, folder: Path, kind: str) -> None:
    """And what was saved before brings the base back."""
    data, base, dtype = damaged(kind, 60 if kind == "near" else 600)
    pack = sent(folder, dtype, len(base), [[wrongly_ending(data, base, dtype)]])
    live, done = live_of(base, dtype), list[Saved]()
    with pytest.raises(FormatError, match=r"a\.dpk: tensor 'w': exact chunk: .* do not end where they should .*R9"):
        engine.switch([], [ExactWork(region_of(live, (len(base),)), dtype, pack.exact["w"])], "auto", done)
    engine.switch(done, [], "auto", [])
    assert bytes_of(live) == base.tobytes()


@pytest.mark.parametrize("count", [0, 1])
def test_what_is_not_there(engine: Engine, folder: Path, count: int) -> None:
    """No elements, and a tensor that is equal: nothing is sent, and nothing is done."""
    dtype = BY_NAME["f32"]
    base = weights(dtype, count, 1)
    pack = sent(folder, dtype, count, [chunks_of(base, base, dtype)])
    assert pack.nbytes == 0 and switched(engine, pack, base, dtype)[0] == base.tobytes()


def test_tables_that_are_the_same_are_sent_once(folder: Path) -> None:
    dtype = BY_NAME["bf16"]
    base = weights(dtype, 100, 1)
    tuned = tuned_from(base, "near", 2)
    data = chunks_of(base, tuned, dtype)
    sizes = [sent(folder, dtype, 100, [data] * times).nbytes for times in (1, 2, 3)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] < sizes[0] - 512
