"""What the encoder chooses, as bytes: fixed inputs give the streams that they gave when these figures were written down.

A change that moves one of them makes other packs of the same call. That may be meant: then say so in CHANGELOG.md and write the new ones
down. Streams are compared before the zstd stage, whose bytes belong to its version, and inputs are made of integers alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.backends import BACKENDS, load
from support.builders import TILE, Tensor, cast, write_file
from support.fixtures import as_weights

import deltapack
from deltapack import kernels
from deltapack.codecs.chunk import TermCodec, coded_chunks, encode_term_chunk, stream_bounds, tiles_of
from deltapack.codecs.indices import best_index
from deltapack.format.frames import unpack_stream
from deltapack.format.reader import PackReader
from deltapack.kernels import Backend

Values = NDArray[np.float32]


@pytest.fixture(params=BACKENDS)
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """One backend after the other, as the one that everything uses."""
    backend = load(request.param)
    monkeypatch.setattr(kernels, "active", lambda: backend)
    return backend


def integers(count: int, seed: int) -> NDArray[np.int64]:
    """Numbers below 2^16 by splitmix64: the same for every version of numpy."""
    with np.errstate(over="ignore"):
        x = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(48)).astype(np.int64)


def bell(count: int, seed: int) -> Values:
    """Sums of four numbers, near a Gaussian with a standard deviation of 0.58; exact in f32."""
    total = np.add.reduce([integers(count, 4 * seed + part) for part in range(4)]) - (1 << 17)
    return np.asarray(total / (1 << 16), np.float32)


def tailed(count: int, seed: int, times: int = 16) -> Values:
    """The same with one in 61 many times as large."""
    values = bell(count, seed)
    values[::61] *= np.float32(times)
    return values


def clipped(count: int, seed: int, step: float, codes: tuple[int, int], extreme: float) -> Values:
    """Two codes of a grid so fine that the extreme of each group is far out of its reach: late candidates for the scale win."""
    values = np.where(integers(count, seed) % 2 == 0, np.float32(codes[0] * step), np.float32(codes[1] * step))
    values[::128] = extreme
    return values


LAWS: dict[str, Callable[[int, int], Values]] = {
    "bell": bell,
    "tailed": tailed,
    "tailed 3": partial(tailed, times=3),
    "tailed 6": partial(tailed, times=6),
    "clipped": partial(clipped, step=0.59375, codes=(-2, 4), extreme=-7.5),
    "clipped 3": partial(clipped, step=0.3125, codes=(-4, -1), extreme=-3.5),
}


def short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


STREAMS: dict[tuple[str, str], tuple[str, ...]] = {
    ("int8", "bell"): ("159ee6623cbab42b", "0c6729e486ffb47c"),
    ("int8", "tailed"): ("8aa122b6cf896d99", "13a96214a27e8ed9"),
    ("int8", "clipped"): ("a3775ae206cc0a01", "382f56f1cb0d868c"),
    ("int8", "clipped 3"): ("a29c016d93233409", "0629d0aba3294e6a"),
    ("int4", "bell"): ("304bd49939cc4430", "5523088ced723f97"),
    ("int4", "tailed"): ("4a24772b9b42ce1e", "fea1523e0b86a6ed"),
    ("int4", "clipped"): ("fde28d589d78aec7", "dbbfd99c5c121e74"),
    ("int4", "clipped 3"): ("6ba498c2fe5ae1e3", "79b03e2952603f33"),
    ("int3", "bell"): ("8881834104237171", "50fa4d67731a8e50"),
    ("int3", "tailed"): ("60481087e52d85ca", "d50e25d3c8cd74e0"),
    ("int3", "clipped"): ("1320a63534ffb0c3", "0c254ff52f956134"),
    ("int3", "clipped 3"): ("9ec7e8e67a5c8619", "dcae234a8ddaa578"),
    ("int2", "bell"): ("f280acd7278dac76", "09747f539cd0ceb9"),
    ("int2", "tailed"): ("b86e4dbd50711126", "a72ebd035d18b307"),
    ("int2", "clipped"): ("5c56d63dc164285a", "2ae6f481c0ddc187"),
    ("int2", "clipped 3"): ("bf46092430520916", "ad5aff488649d30b"),
    ("sign", "bell"): ("bd98a1150bf933ca", "6d1e5c9567b8a23e"),
    ("sign", "tailed"): ("bd98a1150bf933ca", "920130e2c8fdddf1"),
    ("sign", "clipped"): ("6382225407954548", "076bcc58edfd9c33"),
    ("sign", "clipped 3"): ("1c3fe6e482343086", "d360f8060bfa7901"),
    ("bf16", "bell"): ("c3e1999b6b7fa5b2",),
    ("bf16", "tailed"): ("13115630578f9588",),
    ("bf16", "clipped"): ("bb4ac4bba648563f",),
    ("bf16", "clipped 3"): ("a1c681e2879710da",),
    ("f16", "bell"): ("7726a0ef607b13b3",),
    ("f16", "tailed"): ("11422f0150de8cd1",),
    ("f16", "clipped"): ("52e1738e5373b7d3",),
    ("f16", "clipped 3"): ("6e8e7bd09dad3998",),
    ("f32", "bell"): ("8af8cf7e1801fa7b",),
    ("f32", "tailed"): ("ecb6afadc7a793af",),
    ("f32", "clipped"): ("dfc0860faac24351",),
    ("f32", "clipped 3"): ("7ffa5196f2b7177d",),
}


@pytest.mark.parametrize("law", ["bell", "tailed", "clipped", "clipped 3"])
@pytest.mark.parametrize("values", ["int8", "int4", "int3", "int2", "sign", "bf16", "f16", "f32"])
def test_codes_and_scales(loops: Backend, values: str, law: str) -> None:
    counts = np.array([1000, 0, 129, 3000, 127, 1], np.int64)
    kept = LAWS[law](int(counts.sum()), 1)
    kept[1300:1400] *= np.float32(2.0**-20)
    kept[2000:2300] = 0
    chunk, _ = encode_term_chunk(TermCodec("all", values), np.zeros(0, np.uint32), kept, counts, 0, np.float32(1))
    raw = [unpack_stream(stream, length) for stream, length in zip(chunk.streams, chunk.raw_lengths, strict=True)]
    assert tuple(map(short, raw)) == STREAMS[values, law]


INDICES: dict[tuple[str, int], str] = {
    ("gaps", 0): "af7586d7f7314321",
    ("gaps", 1): "bcb52a2bb92af4e7",
    ("gaps", 4): "7a86fb28e7f793e8",
    ("gaps", 15): "199ca17549a399d4",
    ("bitmap", 0): "7eff7d0fe9a63d63",
}


@pytest.mark.parametrize(("index", "shift"), [("gaps", 0), ("gaps", 1), ("gaps", 4), ("gaps", 15), ("bitmap", 0)])
def test_positions(loops: Backend, index: str, shift: int) -> None:
    length = 2 * TILE + 999
    positions = np.flatnonzero(integers(length, 9) < 3000).astype(np.uint32)
    positions = positions[(positions < 5000) | (positions > 9000)]
    counts = np.bincount(positions >> 16, minlength=3).astype(np.int64)
    chunk, _ = encode_term_chunk(
        TermCodec(index, "bf16", shift), positions, np.zeros(len(positions), np.float32), counts, length, np.float32(1)
    )
    assert short(unpack_stream(chunk.streams[0], chunk.raw_lengths[0])) == INDICES[index, shift]


SHIFTS: list[tuple[float, float, tuple[str, int]]] = [
    (1e-06, 2.937e-05, ("gaps", 15)),
    (2.939e-05, 5.873e-05, ("gaps", 14)),
    (5.876e-05, 0.0001174, ("gaps", 13)),
    (0.0001176, 0.0002349, ("gaps", 12)),
    (0.000235, 0.0004697, ("gaps", 11)),
    (0.00047, 0.0009391, ("gaps", 10)),
    (0.0009395, 0.001877, ("gaps", 9)),
    (0.001879, 0.003752, ("gaps", 8)),
    (0.003754, 0.00749, ("gaps", 7)),
    (0.007494, 0.01492, ("gaps", 6)),
    (0.01493, 0.01999, ("gaps", 5)),
    (0.02001, 0.2099, ("gaps", 0)),
    (0.2101, 0.9, ("bitmap", 0)),
]


def test_the_index_of_a_density() -> None:
    """Both sides of every switch: to bytes, to the bitmap, and from one parameter of Rice codes to the next."""
    for least, most, chosen in SHIFTS:
        assert best_index(least) == chosen and best_index(most) == chosen, (least, most)
    assert all(below[1] < above[0] <= below[1] * 1.002 for below, above in pairwise(SHIFTS))
    assert best_index(0) == ("gaps", 15) and best_index(1) == ("bitmap", 0)


AUTO = [
    ("bell", 0.0, 0.05, "int8"),
    ("bell", 0.002, 0.05, "int8"),
    ("bell", 0.1, 0.05, "int8"),
    ("bell", 0.3, 0.05, "int4"),
    ("bell", 0.5, 0.05, "int4"),
    ("bell", 0.75, 0.05, "int3"),
    ("bell", 0.9, 0.05, "int3"),
    ("bell", 0.9, 0.5, "int2"),
    ("bell", 0.9, 0.01, "int4"),
    ("bell", 0.9, 0.001, "int8"),
    ("bell", 0.99, 0.05, "int3"),
    ("tailed", 0.0, 0.05, "bf16"),
    ("tailed 3", 0.0, 0.05, "int8"),
    ("tailed 6", 0.0, 0.05, "bf16"),
    ("tailed", 0.002, 0.05, "bf16"),
    ("tailed", 0.3, 0.05, "int8"),
    ("tailed", 0.75, 0.05, "int8"),
    ("tailed", 0.9, 0.05, "int8"),
    ("tailed", 0.9, 0.5, "int2"),
    ("tailed", 0.9, 0.01, "int8"),
    ("tailed", 0.9, 0.001, "int8"),
    ("tailed", 0.99, 0.05, "int8"),
]


@pytest.mark.parametrize(("law", "drop_rate", "fidelity", "expected"), AUTO)
def test_auto_values(loops: Backend, law: str, drop_rate: float, fidelity: float, expected: str, tmp_path: Path) -> None:
    pack = compress(tmp_path, LAWS[law](9000, 2), drop_rate=drop_rate, fidelity=fidelity)
    with deltapack.open_pack(pack) as opened:
        assert [term.values for term in opened["w"].entry.terms] == [expected]


@pytest.mark.parametrize(("tile", "expected"), [(3, "int8"), (7, "int3")])
def test_auto_looks_at_eight_tiles(loops: Backend, tile: int, expected: str, tmp_path: Path) -> None:
    """Of nine it sees all but the eighth: what is there does not count."""
    delta = bell(9 * TILE, 3)
    delta[tile * TILE : (tile + 1) * TILE] = tailed(TILE, 4) * np.float32(4)
    with deltapack.open_pack(compress(tmp_path, delta)) as opened:
        assert [term.values for term in opened["w"].entry.terms] == [expected]


def compress(folder: Path, delta: Values, **recipe: Any) -> Path:
    tuned = {"w": Tensor("f32", delta)}
    write_file(folder / "base.safetensors", {"w": cast(np.zeros(len(delta)), "f32")})
    write_file(folder / "tuned.safetensors", tuned)
    made = deltapack.Recipe(overrides=as_weights(tuned), **({"drop_rate": 0.9} | recipe))
    deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", folder / "pack.dpk", recipe=made)
    return folder / "pack.dpk"


PACKS: dict[str, tuple[str, str]] = {
    "as it is": ("seeded 0 int8 d1ad822db24cacdc 429496730 10.0 7509", "67bf240c7e3aee9b"),
    "seed": ("seeded 0 int8 a75eac3b21083fdd 429496730 10.0 7483", "8e65d15502e0c978"),
    "seeded 0.5": ("seeded 0 int4 d1ad822db24cacdc 2147483648 2.0 37274", "f5cb7392ea174469"),
    "gaps": ("gaps 0 int8 0 0 10.0 7509", "a47f26327c0fa917"),
    "rice": ("gaps 6 int8 0 0 100.0 757", "000633fbcd4c221a"),
    "bitmap": ("bitmap 0 sign 0 0 2.5 29845", "5508fa68bf1e6201"),
    "all": ("all 0 int2 0 0 1.0 74536", "1154630f955c3f03"),
    "magnitude": ("gaps 0 int8 0 0 1.0 7454", "dcc7d4866fdaa278"),
    "della": ("gaps 0 int8 0 0 1.0 7474", "70d2db25614dc6f1"),
    "breadcrumbs": ("gaps 0 int3 0 0 1.0 7454", "3310303b0bec909b"),
}
RECIPES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "seed": {"seed": 1},
    "seeded 0.5": {"drop_rate": 0.5, "values": "int4"},
    "gaps": {"index": "gaps"},
    "rice": {"index": "gaps", "drop_rate": 0.99},
    "bitmap": {"index": "gaps", "drop_rate": 0.6, "values": "sign"},
    "all": {"drop_rate": 0.0, "values": "int2"},
    "magnitude": {"sparsify": "magnitude"},
    "della": {"sparsify": "della"},
    "breadcrumbs": {"sparsify": "breadcrumbs"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_packs(loops: Backend, name: str, tmp_path: Path) -> None:
    """Codecs, keys, factors and streams of a tensor of several tiles."""
    with PackReader(compress(tmp_path, tailed(TILE + 9000, 5), **RECIPES[name])) as reader:
        (entry,) = reader.index.entries
        (term,) = entry.terms
        blob = coded_chunks(reader, entry, term)
        raw = b"".join(blob.streams(0, stream_bounds(term, *tiles_of(blob, 0))))
        assert (f"{term.index} {term.shift} {term.values} {term.key:x} {term.keep} {term.factor!r} {term.nnz}", short(raw)) == PACKS[name]
