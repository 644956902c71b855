"""Every engine on every device that is there gives the bits of the numpy reference, and puts the base's bits back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import device_packs as packs
from support.codecs import codec_of, completed

from deltapack.codecs.chunk import TermCodec
from deltapack.device.backends import choose
from deltapack.device.engine import Engine
from deltapack.device.regions import Region, region_of
from deltapack.device.resident import ResidentPack, send
from deltapack.device.work import Saved, UndoMode, Work
from deltapack.dtypes import BY_NAME, DType
from deltapack.errors import FormatError
from deltapack.format.codecs import FACTORS, INDEX_CODECS, VALUE_CODECS
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.reader import PackReader

pytestmark = pytest.mark.slow

FLOATS = ["bf16", "f16", "f32", "f8_e4m3fn", "f8_e5m2", "f64"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CODECS = completed(
    [
        *(codec_of("seeded", values) for values in VALUE_CODECS),
        *(TermCodec("gaps", "int4", shift) for shift in (0, 1, 5, 9, 15)),
        TermCodec("bitmap", "int2"),
        TermCodec("bitmap", "f16"),
        TermCodec("all", "int8"),
        TermCodec("all", "bf16"),
    ]
)
MIXED = [
    TermCodec("seeded", "int4"),
    TermCodec("gaps", "bf16"),
    TermCodec("bitmap", "sign"),
    TermCodec("all", "f32"),
    TermCodec("gaps", "f16", 9),
]
Make = Callable[..., tuple[PackReader, ResidentPack]]


@pytest.fixture(params=["torch", "triton"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "triton":
        pytest.importorskip("triton")
    found = choose(request.param, torch.device(DEVICE)).engine
    assert found is not None and found.name == request.param
    return found


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a function that writes a pack of one tensor, opens it and sends it."""
    opened: list[PackReader] = []

    def pack(numel: int, codecs: list[TermCodec], density: float = 0.1, seed: int = 0, **options: Any) -> tuple[PackReader, ResidentPack]:
        opened.append(PackReader(packs.write_pack(tmp_path / f"{len(opened)}.dpk", numel, codecs, density, seed)))
        return opened[-1], send(opened[-1], torch.device(DEVICE), 2, **options)

    yield pack
    for reader in opened:
        reader.close()


def work_of(reader: PackReader, resident: ResidentPack, region: Region, dtype: DType, weight: float = 1.0, **options: Any) -> Work:
    terms = reader.index.entries[0].terms
    weighted = [(resident.terms[term], float(np.float32(term.factor) * np.float32(weight))) for term in terms]
    return Work(region, dtype, tuple(weighted), **options)


def check(engine: Engine, pack: tuple[PackReader, ResidentPack], dtype: DType, mode: UndoMode = "log", weight: float = 0.7) -> list[Saved]:
    """Apply, compare, undo, compare; return what had been saved."""
    reader, resident = pack
    numel = reader.index.entries[0].numel
    base = packs.random_bits(numel, dtype)
    live = packs.to_torch(base, DEVICE)
    done: list[Saved] = []
    address = live.data_ptr()
    engine.switch([], [work_of(reader, resident, region_of(live, (numel,)), dtype, weight)], mode, done)
    wanted = packs.unsigned(packs.expected(reader, base, dtype, dtype, weight))
    assert np.array_equal(packs.unsigned(live), wanted)
    engine.switch(done, [], mode, [])
    assert np.array_equal(packs.unsigned(live), packs.unsigned(base)) and live.data_ptr() == address
    return done


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.index}-{codec.shift}-{codec.values}")
def test_every_codec(engine: Engine, make: Make, codec: TermCodec) -> None:
    density = {0: 0.1, 1: 0.4, 5: 0.02, 9: 0.001, 15: 0.0001}[codec.shift]
    for numel in (TILE + 1000, 700):
        check(engine, make(numel, [codec], density), BY_NAME["bf16"])


def test_the_kernel_knows_every_form_of_code() -> None:
    from deltapack.device.tables import VALUES

    assert VALUES.keys() == {row.form for row in (*VALUE_CODECS.values(), FACTORS)}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 5])
def test_every_dtype(engine: Engine, make: Make, dtype: str, count: int) -> None:
    check(engine, make(9000, MIXED[:count]), BY_NAME[dtype])


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_results_of_another_type(engine: Engine, make: Make, source: str, target: str) -> None:
    from deltapack.kernels import rounding

    one, other = BY_NAME[source], BY_NAME[target]
    for count in (1, 2):
        reader, resident = make(1500, MIXED[:count])
        base = packs.random_bits(1500, one)
        held = packs.to_torch(base, DEVICE)
        live = packs.to_torch(rounding.convert(base, one, other).view(other.storage), DEVICE)
        source_region = (region_of(held, (1500,)), one)
        engine.switch([], [work_of(reader, resident, region_of(live, (1500,)), other, source=source_region)], "nothing", [])
        assert np.array_equal(packs.unsigned(live), packs.unsigned(packs.expected(reader, base, one, other, 1.0)))


@pytest.mark.parametrize("numel", [0, 1, 2, 127, 128, 129, TILE - 1, TILE, TILE + 1, 2 * TILE + 1])
@pytest.mark.parametrize("codecs", [[MIXED[0]], MIXED[1:3]], ids=["one", "two"])
def test_every_boundary(engine: Engine, make: Make, numel: int, codecs: list[TermCodec]) -> None:
    check(engine, make(numel, codecs, 0.05), BY_NAME["bf16"])


@pytest.mark.parametrize("density", [1e-9, 1e-4, 0.003, 0.5, 1.0])
def test_every_density(engine: Engine, make: Make, density: float) -> None:
    """From masks that are nearly empty to those that keep everything: samples that skip 255 elements, samples that skip none."""
    for codec in (TermCodec("seeded", "int4"), TermCodec("gaps", "int4"), TermCodec("gaps", "int4", 9)):
        check(engine, make(TILE + 300, [codec], density), BY_NAME["bf16"])


def test_several_chunks_and_small_segments(engine: Engine, make: Make) -> None:
    """Streams that lie in many segments, tiles of the second chunk."""
    pack = make(CHUNK + TILE + 5, [TermCodec("seeded", "int4"), TermCodec("gaps", "int2", 9)], 0.005, segment_bytes=5000)
    assert len(next(iter(pack[1].terms.values())).segments) >= 3
    check(engine, pack, BY_NAME["bf16"])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_many_terms_are_added_in_order(engine: Engine, make: Make, count: int) -> None:
    codecs = [TermCodec("gaps", "f32"), TermCodec("bitmap", "f32")] * 4
    check(engine, make(3000, codecs[:count], 0.5, seed=3), BY_NAME["f32"], weight=1e3)


@pytest.mark.parametrize(
    ("numel", "density"),
    [(4096, 0.1), (4096, 0.9), (8191, 1e-3), (8191, 0.9), *((3 * 4096 + 1, density) for density in (1e-3, 0.1, 0.9)), (TILE + 5000, 1e-3)],
)
def test_sums_in_small_windows(make: Make, numel: int, density: float) -> None:
    """Terms go on in the next window inside of a block, over blocks that skip windows, and up to the very end of a tile."""
    pytest.importorskip("triton")
    from deltapack.device.triton_engine import TritonEngine

    codecs = [TermCodec("seeded", "int4"), TermCodec("gaps", "f32"), TermCodec("bitmap", "int2"), TermCodec("seeded", "bf16")]
    check(TritonEngine(torch.device(DEVICE), block=1024, window=4096), make(numel, codecs, density), BY_NAME["bf16"])


@pytest.mark.parametrize("mode", ["log", "copy", "auto"])
def test_ways_to_undo(engine: Engine, make: Make, mode: UndoMode) -> None:
    numel = TILE + 77
    sparse = check(engine, make(numel, [TermCodec("seeded", "int4")], 0.01), BY_NAME["bf16"], mode)
    dense = check(engine, make(numel, [TermCodec("all", "int4")]), BY_NAME["bf16"], mode)
    half = check(engine, make(numel, [TermCodec("gaps", "int4")], 0.5), BY_NAME["bf16"], mode)
    (few,), (all_,), (some,) = sparse, dense, half
    assert (few.nbytes == 2 * numel) is (mode == "copy")
    assert all_.nbytes >= 2 * numel
    assert (all_.nbytes == 2 * numel) is (mode != "log" or engine.name == "triton")
    assert (some.nbytes <= 2 * numel) is (mode != "log" or engine.name == "triton")


@pytest.mark.parametrize("mode", ["log", "copy"])
def test_a_switch_equals_undo_and_apply(engine: Engine, make: Make, mode: UndoMode) -> None:
    """Of regions that both change, only the first, only the second; of several dtypes in one call."""
    numel, dtypes = 4000, [BY_NAME["bf16"], BY_NAME["f32"], BY_NAME["bf16"]]
    one, other = make(numel, MIXED[:1], seed=1), make(numel, MIXED[1:4], seed=2)
    bases = [packs.random_bits(numel, dtype, seed) for seed, dtype in enumerate(dtypes)]
    lives = [packs.to_torch(base, DEVICE) for base in bases]
    regions = [region_of(live, (numel,)) for live in lives]

    def works(pack: tuple[PackReader, ResidentPack], numbers: list[int]) -> list[Work]:
        return [work_of(*pack, regions[number], dtypes[number]) for number in numbers]

    def agrees(number: int, reader: PackReader | None) -> bool:
        dtype, base = dtypes[number], bases[number]
        wanted = base if reader is None else packs.expected(reader, base, dtype, dtype, 1.0)
        return np.array_equal(packs.unsigned(lives[number]), packs.unsigned(wanted))

    first: list[Saved] = []
    engine.switch([], works(one, [0, 1]), mode, first)
    assert agrees(0, one[0]) and agrees(1, one[0]) and agrees(2, None)
    second: list[Saved] = []
    engine.switch(first, works(other, [2, 1]), mode, second)
    assert agrees(0, None) and agrees(1, other[0]) and agrees(2, other[0])
    engine.switch(second, [], mode, [])
    assert all(agrees(number, None) for number in range(3))


SLICES = {
    "rows": ((slice(3, 250), slice(None)), False),
    "columns": ((slice(None), slice(100, 301)), False),
    "both": ((slice(17, 19), slice(5, 6)), False),
    "transposed": ((slice(None), slice(None)), True),
    "transposed columns": ((slice(None), slice(7, 400)), True),
    "none": ((slice(9, 9), slice(None)), False),
}


@pytest.mark.parametrize("case", SLICES)
@pytest.mark.parametrize("count", [1, 2])
def test_slices_of_a_matrix(engine: Engine, make: Make, case: str, count: int) -> None:
    """A region that holds some rows or columns, in memory that is not contiguous; what is around it stays."""
    shape, (piece, transposed) = (300, 411), SLICES[case]
    dtype = BY_NAME["bf16"]
    reader, resident = make(300 * 411, [TermCodec("seeded", "int4"), TermCodec("bitmap", "int2")][:count])
    base = packs.random_bits(300 * 411, dtype).reshape(shape)
    whole = packs.expected(reader, base.reshape(-1), dtype, dtype, 1.0).reshape(shape)
    held = base[piece]
    around = packs.to_torch(np.full((held.shape[0] + 4, held.shape[1] + 6), 0x1234, np.uint16), DEVICE)
    around = around.T.contiguous().T if transposed else around
    into = (slice(2, 2 + held.shape[0]), slice(3, 3 + held.shape[1]))
    around[into] = packs.to_torch(held, DEVICE)
    before = around.clone()
    wanted = before.clone()
    wanted[into] = packs.to_torch(whole[piece], DEVICE)
    done: list[Saved] = []
    engine.switch([], [work_of(reader, resident, region_of(around, shape, piece, into), dtype)], "log", done)
    assert torch.equal(around, wanted)
    engine.switch(done, [], "log", [])
    assert torch.equal(around, before)


@pytest.mark.parametrize("index", [row.name for row in INDEX_CODECS.values() if row.kept == "random"])
def test_a_random_mask_with_another_count_is_refused(engine: Engine, tmp_path: Path, index: str) -> None:
    """The table promises an element more, or less, than the samples keep: an error, nothing outside is touched, and all can be undone."""
    from deltapack.format.index import BaseRef, Entry
    from deltapack.format.writer import open_pack_writer

    dtype = BY_NAME["bf16"]
    for stray in (1, -1):
        with open_pack_writer(tmp_path / "bad.dpk", force=True) as writer:
            term = packs.write_term(writer, TermCodec(index, "int4"), 500, 0.2, 1, stray)
            entry = Entry("w", "delta", packs.F32, (500,), packs.NO_DIGEST, BaseRef("w", packs.F32, (500,), packs.NO_DIGEST), (term,))
            writer.finish(packs.index_of(entry))
        with PackReader(tmp_path / "bad.dpk") as reader:
            resident = send(reader, torch.device(DEVICE), 1)
            live = packs.to_torch(packs.random_bits(520, dtype), DEVICE)
            done: list[Saved] = []
            before = live.clone()
            with pytest.raises(FormatError) as caught:
                engine.switch([], [work_of(reader, resident, region_of(live[10:510], (500,)), dtype)], "log", done)
            assert (caught.value.rule, caught.value.tensor, caught.value.path) == ("R9", "w", reader.path)
            for saved in done:
                saved.put_back()
            assert torch.equal(live, before)
