"""Terms that know rows and columns, or strata: every engine gives the bits of the numpy reference, and puts the base's bits back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support import device_packs as packs
from support.codecs import ONE_SCALE
from support.device_packs import Codec, Product

from deltapack.codecs.chunk import TermCodec, decode_term_chunk, term_chunks
from deltapack.device.backends import choose
from deltapack.device.engine import Engine
from deltapack.device.regions import region_of
from deltapack.device.resident import ResidentPack, send
from deltapack.device.work import Saved, SavedCopy, UndoMode, Work
from deltapack.dtypes import BY_NAME
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.reader import PackReader

pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, COLUMNS = 300, 411
TRITS = TermCodec("stratified", "ternary", 0, ONE_SCALE)
ROW_TRITS = TermCodec("stratified", "ternary", 0, packs.scaling("rows", ROWS, COLUMNS))
LEVELS = TermCodec("seeded", "uniform", 0, packs.scaling("outer", ROWS, COLUMNS))
TERMS: dict[str, list[Codec]] = {
    "trits": [TRITS],
    "levels": [TermCodec("stratified", "uniform", 0, ONE_SCALE)],
    "trits, rows": [ROW_TRITS],
    "levels, outer": [LEVELS],
    "signs of kept rows": [TermCodec("all", "sign", 0, packs.scaling("rows", ROWS, COLUMNS))],
    "stored positions of kept rows": [TermCodec("bitmap", "int4", 0, packs.scaling("outer", ROWS, COLUMNS))],
    "factors": [Product(3, 4)],
    "factors and trits": [Product(4, 2), TRITS],
    "of all kinds": [Product(1, 8), ROW_TRITS, TermCodec("gaps", "int2"), LEVELS],
}
Make = Callable[..., tuple[PackReader, ResidentPack]]


@pytest.fixture(params=["torch", "triton"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "triton":
        pytest.importorskip("triton")
    found = choose(request.param, torch.device(DEVICE)).engine
    assert found is not None
    return found


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a function that writes a pack of one matrix, opens it and sends it."""
    opened: list[PackReader] = []

    def pack(rows: int, columns: int, codecs: list[Codec], density: float = 0.1) -> tuple[PackReader, ResidentPack]:
        opened.append(PackReader(packs.write_pack(tmp_path / f"{len(opened)}.dpk", rows * columns, codecs, density, 0, columns)))
        return opened[-1], send(opened[-1], torch.device(DEVICE), 2)

    yield pack
    for reader in opened:
        reader.close()


def check(
    engine: Engine,
    pack: tuple[PackReader, ResidentPack],
    piece: tuple[slice, ...] = (),
    transposed: bool = False,
    dtype: str = "bf16",
    mode: UndoMode = "log",
) -> list[Saved]:
    """Apply to a piece of the matrix that lies in a larger one, compare, undo, compare; return what had been saved."""
    (reader, resident), kind = pack, BY_NAME[dtype]
    (entry,), weight = reader.index.entries, np.float32(0.7)
    base = packs.random_bits(entry.numel, kind)
    whole = packs.expected(reader, base, kind, kind, float(weight)).reshape(entry.shape)
    held, wanted = (packs.to_torch(elements, DEVICE) for elements in (base.reshape(entry.shape)[piece], whole[piece]))
    around = torch.full((held.shape[0] + 4, held.shape[1] + 6), 0x12, dtype=held.dtype, device=DEVICE)
    around = around.T.contiguous().T if transposed else around
    into = (slice(2, 2 + held.shape[0]), slice(3, 3 + held.shape[1])) if piece else ()
    around = around if piece else held.clone()
    around[into] = held
    before, after = around.clone(), around.clone()
    after[into] = wanted
    done: list[Saved] = []
    terms = tuple((resident.terms[term], float(np.float32(term.factor) * weight)) for term in entry.terms)
    engine.switch([], [Work(region_of(around, entry.shape, piece, into), kind, terms)], mode, done)
    assert torch.equal(around, after)
    engine.switch(done, [], mode, [])
    assert torch.equal(around, before)
    return done


@pytest.mark.parametrize("terms", TERMS)
def test_every_form_of_term(engine: Engine, make: Make, terms: str) -> None:
    check(engine, make(ROWS, COLUMNS, TERMS[terms]))


@pytest.mark.parametrize("dtype", ["f32", "f8_e4m3fn"])
def test_other_types(engine: Engine, make: Make, dtype: str) -> None:
    check(engine, make(40, COLUMNS, [Product(2, 4), TRITS]), dtype=dtype)


@pytest.mark.parametrize("shape", [(16, 70_001), (CHUNK // 3 + 100, 3), (1, 1), (2, TILE)], ids=str)
def test_long_rows_short_rows_and_several_chunks(engine: Engine, make: Make, shape: tuple[int, int]) -> None:
    """Rows longer than a tile and rows that end in the midst of one; the second chunk's rows and strata are its own."""
    lined = TermCodec("stratified", "ternary", 0, packs.scaling("outer", *shape, dropped=0.3 if shape[0] > 1 else 0))
    check(engine, make(*shape, [lined]))
    check(engine, make(*shape, [Product(1, 2), lined]))


@pytest.mark.parametrize("density", [1e-5, 0.6, 1.0])
def test_few_and_all_strata(engine: Engine, make: Make, density: float) -> None:
    """Strata of a tile's length, of one and two elements, and of one."""
    check(engine, make(2, TILE + 700, [TRITS], density))


@pytest.mark.parametrize(
    ("piece", "transposed"),
    [((slice(3, 250), slice(None)), False), ((slice(None), slice(100, 301)), False), ((slice(17, 260), slice(7, 400)), True)],
    ids=["rows", "columns", "transposed"],
)
def test_slices(engine: Engine, make: Make, piece: tuple[slice, ...], transposed: bool) -> None:
    """What a rank of a tensor-parallel model holds: a slice of the factors, of the rows' scales and of the strata."""
    check(engine, make(ROWS, COLUMNS, [Product(3, 4), ROW_TRITS]), piece, transposed)
    check(engine, make(ROWS, COLUMNS, [ROW_TRITS]), piece, transposed)


def test_a_term_in_small_windows(make: Make) -> None:
    """Strata go on in the next window inside of a block, with kept elements on both sides of the border."""
    pytest.importorskip("triton")
    from deltapack.device.triton_engine import TritonEngine

    check(TritonEngine(torch.device(DEVICE), block=1024, window=4096), make(ROWS, COLUMNS, [Product(2, 4), ROW_TRITS, TRITS]))


def test_a_zero_trit_touches_nothing(engine: Engine, make: Make) -> None:
    """Neither -0.0 nor a NaN with bits of its own, to which adding 0 would give other bits."""
    reader, resident = make(ROWS, COLUMNS, [TRITS])
    (entry,), (term,) = reader.index.entries, reader.index.entries[0].terms
    kept, _ = decode_term_chunk(term_chunks(reader, entry, term), term, 0, np.float32(1))
    assert 0.3 * term.nnz < len(kept) < 0.7 * term.nnz
    live = torch.full((ROWS, COLUMNS), -0x8000, dtype=torch.int16, device=DEVICE)
    live[:, ::2] = 0x7F81
    before = live.clone().reshape(-1)
    engine.switch([], [Work(region_of(live, entry.shape), BY_NAME["bf16"], ((resident.terms[term], 1.0),))], "nothing", [])
    assert torch.nonzero(live.reshape(-1) != before).reshape(-1).tolist() == kept.tolist()


def test_what_is_dense_is_undone_by_a_copy(engine: Engine, make: Make) -> None:
    (saved,) = check(engine, make(ROWS, COLUMNS, [Product(1, 2), TRITS]), mode="auto")
    assert isinstance(saved, SavedCopy)
