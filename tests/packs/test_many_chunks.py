"""Tensors of four and five chunks: every path takes each chunk's own elements, masks, rows and digests, far into the tensor.

Elements are small integers, which are exact in all types here, and tell where they belong: a chunk in place of another shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.builders import CHUNK, TILE, Model, Tensor, cast, read_model, whole

import deltapack
from deltapack.codecs.chunk import term_chunks
from deltapack.device.model_tensors import Slice
from deltapack.device.resident import send
from deltapack.errors import BaseMismatchError, ChecksumError
from deltapack.format.reader import PackReader
from deltapack.kernels import active

PackOf = Callable[..., Path]
Restore = Callable[..., Model]
SHAPE = (4100, 1024)
"""Four chunks and 4,096 elements; a row is in one chunk."""
NUMEL = 4100 * 1024
ODD = (4_300_000 // 1000, 1000)
"""Four chunks and a part; rows cross their borders."""
RECIPES: dict[str, dict[str, Any]] = {
    "seeded": {"drop_rate": 0.9},
    "gaps": {"drop_rate": 0.9, "index": "gaps"},
    "rice": {"drop_rate": 0.99, "index": "gaps"},
    "bitmap": {"drop_rate": 0.7, "index": "gaps"},
    "all": {"drop_rate": 0.0},
    "magnitude": {"sparsify": "magnitude", "drop_rate": 0.9},
}
recipes = pytest.mark.parametrize("name", RECIPES)


def places(numel: int) -> NDArray[np.int64]:
    return np.arange(numel, dtype=np.int64)


def base_of(shape: tuple[int, ...], dtype: str = "bf16") -> Tensor:
    flat = places(math.prod(shape))
    return cast(((flat * 40503 >> 7) % 61).astype(np.float32).reshape(shape), dtype)


def delta_of(shape: tuple[int, ...], extra: int = 0) -> NDArray[np.float32]:
    """1 to 7, and 8 more for each chunk before; never 0."""
    flat = places(math.prod(shape))
    return ((flat * 48271 >> 5) % 7 + 1 + 8 * (flat // CHUNK) + extra).astype(np.float32).reshape(shape)


def tuned_of(shape: tuple[int, ...], dtype: str = "bf16", extra: int = 0) -> Tensor:
    return cast(base_of(shape, dtype).f64 + delta_of(shape, extra), dtype)


def made(pack_of: PackOf, name: str, shape: tuple[int, ...] = SHAPE, extra: int = 0) -> Path:
    recipe = RECIPES[name]
    return pack_of({"w": base_of(shape)}, {"w": tuned_of(shape, extra=extra)}, f"{name}{extra}", values="bf16", rescale=1, **recipe)


def kept_of(path: Path) -> NDArray[np.int64]:
    with deltapack.open_pack(path) as pack:
        return pack["w"].to_sparse()[0]


def expected_of(kept: NDArray[np.int64], shape: tuple[int, ...] = SHAPE, extra: int = 0) -> Tensor:
    out = base_of(shape).bits.copy()
    out.reshape(-1)[kept] = tuned_of(shape, extra=extra).bits.reshape(-1)[kept]
    return Tensor("bf16", out)


@recipes
def test_views_and_restoring(name: str, pack_of: PackOf, applied: Restore) -> None:
    pack = made(pack_of, name, ODD)
    delta = delta_of(ODD).reshape(-1)
    with deltapack.open_pack(pack) as opened:
        entry = opened["w"]
        positions, values = entry.to_sparse()
        assert (np.diff(positions) > 0).all() and values.tobytes() == delta[positions].tobytes()
        dense = np.zeros(delta.size, np.float32)
        dense[positions] = values
        assert entry.to_dense().tobytes() == dense.tobytes()
        sparse = entry.to_scipy()
        rows, columns = np.divmod(positions, ODD[1])
        assert sparse.shape == ODD and sparse.indices.tobytes() == columns.astype(sparse.indices.dtype).tobytes()
        assert sparse.data.tobytes() == values.tobytes()
        assert np.diff(sparse.indptr).tolist() == np.bincount(rows, minlength=ODD[0]).tolist()
        found = entry.to_torch_sparse()
        assert np.array_equal(found.indices().numpy(), np.stack([rows, columns])) and found.values().numpy().tobytes() == values.tobytes()
        assert [np.count_nonzero(positions // CHUNK == chunk) > 1000 for chunk in range(5)] == [True] * 5
        base = base_of(ODD).bits.copy()
        opened.add_to({"w": base})
        again = base_of(ODD).bits.copy()
        opened.load().add_to({"w": again}, workers=3)
    expected = expected_of(positions, ODD)
    assert base.tobytes() == again.tobytes() == expected.raw
    assert applied(pack) == {"w": expected}
    assert deltapack.verify(pack, pack.with_name("base.safetensors")).deep


def test_seeded_masks_of_chunks_are_those_of_the_tensor(pack_of: PackOf) -> None:
    """All tiles drawn in one go give the same places, and no chunk repeats another."""
    pack = made(pack_of, "seeded")
    kept = kept_of(pack)
    with deltapack.open_pack(pack) as opened:
        (term,) = opened["w"].entry.terms
    lengths = np.full(-(-NUMEL // TILE), TILE, np.int64)
    lengths[-1] = NUMEL - (len(lengths) - 1) * TILE
    positions, _ = active().sample_positions(term.key, term.keep, 0, lengths)
    assert kept.tolist() == positions.tolist()
    masks = [np.isin(places(CHUNK), kept - chunk * CHUNK) for chunk in range(4)]
    for one, other in combinations(masks, 2):
        assert abs(np.count_nonzero(one & other) - 0.01 * CHUNK) < 5 * math.sqrt(0.01 * CHUNK)


def test_the_largest_of_all_chunks(pack_of: PackOf) -> None:
    """Differences grow by chunk, so a tenth of all is in the last ones; of equal ones the first stay."""
    kept, magnitude = kept_of(made(pack_of, "magnitude", ODD)), delta_of(ODD).reshape(-1)
    largest = np.argsort(-magnitude, kind="stable")[: len(kept)]
    assert kept.tolist() == np.sort(largest).tolist() and len(kept) == int(0.1 * magnitude.size)


@recipes
def test_tables_of_what_lies_on_a_device(name: str, pack_of: PackOf) -> None:
    """Each tile's row counts what comes before it, in its chunk and in the term; in one segment and in many."""
    pack = made(pack_of, name)
    with PackReader(pack) as reader:
        (entry,) = reader.index.entries
        (term,) = entry.terms
        blob = term_chunks(reader, entry, term)
        counts = np.concatenate([record.counts for record in blob.records])
        tables = []
        for size in (1 << 26, 1 << 16):
            resident = send(reader, torch.device("cpu"), 2, segment_bytes=size)
            (ready,) = resident.terms.values()
            assert ready.column("count").tolist() == counts.tolist()
            before = np.cumsum(counts) - counts
            assert ready.column("before").tolist() == before.tolist()
            assert ready.column("first").tolist() == (before - np.repeat(before[::16], 16)[: len(before)]).tolist()
            tables.append(ready)
        for tile in range(len(counts)):
            lines = [[int(table.column(column)[tile]) for column in ("segment", "codes", "first", "count")] for table in tables]
            codes = [table.segments[line[0]].numpy()[line[1] :].view("<u2")[line[2] : line[2] + line[3]] for table, line in zip(tables, lines, strict=True)]
            wanted = delta_of(SHAPE).reshape(-1)[kept_in(pack, tile)]
            assert all(cast(wanted, "bf16").raw == code.tobytes() for code in codes)


def kept_in(pack: Path, tile: int, cache: dict[Path, NDArray[np.int64]] = {}) -> NDArray[np.int64]:  # noqa: B006
    kept = cache[pack] if pack in cache else cache.setdefault(pack, kept_of(pack))
    low, high = np.searchsorted(kept, [tile * TILE, (tile + 1) * TILE])
    return kept[low:high]


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_merges(method: str, pack_of: PackOf, merged: Restore, applied: Restore, tmp_path: Path) -> None:
    packs = [made(pack_of, "seeded"), made(pack_of, "gaps", extra=32)]
    total, count = np.zeros(NUMEL, np.float32), np.zeros(NUMEL, np.float32)
    for pack, extra in zip(packs, (0, 32), strict=True):
        kept = kept_of(pack)
        total[kept] += delta_of(SHAPE, extra).reshape(-1)[kept]
        count[kept] += 1
    if method == "ties":  # all signs agree, so it is the mean of what is kept
        total /= np.maximum(count, 1)
    base = base_of(SHAPE).bits.reshape(-1).copy()
    changed = count > 0
    base[changed] = cast(base_of(SHAPE).f64.reshape(-1)[changed].astype(np.float32) + total[changed], "bf16").bits
    expected = {"w": Tensor("bf16", base.reshape(SHAPE))}
    assert merged(packs, method=method) == expected
    deltapack.merge(tmp_path / "base.safetensors", packs, tmp_path / "merged.dpk", method=method)
    assert applied(tmp_path / "merged.dpk") == expected
    deltapack.verify(tmp_path / "merged.dpk", tmp_path / "base.safetensors")


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_live_models_and_slices(backend: str, pack_of: PackOf, tmp_path: Path) -> None:
    """Rows of the last chunks, columns of all of them, and the whole tensor."""
    packs = [made(pack_of, name, ODD, extra) for name, extra in (("seeded", 0), ("gaps", 32))]
    results = [expected_of(kept_of(pack), ODD, extra).bits for pack, extra in zip(packs, (0, 32), strict=True)]
    base = base_of(ODD).bits
    parts = {"rows": (slice(3000, 4299), slice(None)), "columns": (slice(None), slice(990, 1000)), "all": (slice(None), slice(None))}
    for part, (rows, columns) in parts.items():
        state = {"w": torch.from_numpy(np.ascontiguousarray(base[rows, columns]).view("<i2").copy()).view(torch.bfloat16)}
        names = {} if part == "all" else {"w": Slice("w", of=(rows, columns))}
        live = deltapack.attach(state, tmp_path / "base.safetensors", names=names, backend=backend)
        for chosen in (0, 1, 0):
            live.activate(packs[chosen])
            found = state["w"].view(torch.int16).numpy().view("<u2")
            assert np.array_equal(found, results[chosen][rows, columns]), (part, chosen)
        live.deactivate()
        assert np.array_equal(state["w"].view(torch.int16).numpy().view("<u2"), base[rows, columns])


def bytes_at(shape: tuple[int, ...], seed: int) -> Tensor:
    """Bits of float8 that repeat nowhere near, none of them NaN."""
    flat = places(math.prod(shape)) + seed
    return Tensor("f8_e5m2", ((flat * 2654435761 >> 13) % 120).astype(np.uint8).reshape(shape))


def test_rows_that_are_stored_and_tensors_that_are(pack_of: PackOf, applied: Restore, merged: Restore) -> None:
    """A tail of over four chunks that begins in the middle of one, a tensor stored whole, and one that is smaller so."""
    base = {"grown": bytes_at((1300, 1000), 1), "ids": whole("u8", np.zeros(NUMEL + 77)), "same": bytes_at((NUMEL,), 5)}
    tuned = {"grown": bytes_at((5600, 1000), 1), "ids": whole("u8", places(NUMEL + 77) * 2654435761 >> 11), "same": base["same"]}
    tuned["grown"].bits[:1300] = cast(base["grown"].f64[:1300] + 0.5, "f8_e5m2").bits
    tuned["new"] = bytes_at((NUMEL + 5,), 9)
    pack = pack_of(base, tuned, drop_rate=0.9, rescale=1, values="bf16")
    with deltapack.open_pack(pack) as opened:
        assert {name: entry.kind for name, entry in opened.items()} == {"grown": "grown", "ids": "stored", "new": "stored", "same": "unchanged"}
        assert opened["ids"].to_dense().tobytes() == tuned["ids"].raw and opened["new"].to_dense().tobytes() == tuned["new"].raw
        rows = opened["grown"].to_dense()
        assert np.array_equal(rows[1300:], tuned["grown"].f64[1300:].astype(np.float32)) and rows[:1300].any()
    for result in (applied(pack), merged([pack])):
        assert {name: result[name] for name in ("ids", "new", "same")} == {name: tuned[name] for name in ("ids", "new", "same")}
        assert result["grown"].bits[1300:].tobytes() == tuned["grown"].bits[1300:].tobytes()
    deltapack.verify(pack, pack.with_name("base.safetensors"))


def test_a_tensor_that_is_smaller_whole_and_one_with_fewer_rows(pack_of: PackOf, applied: Restore) -> None:
    base = {"dense": base_of(SHAPE), "less": base_of(SHAPE)}
    tuned = {"dense": tuned_of(SHAPE), "less": tuned_of((3600, 1024))}
    pack = pack_of(base, tuned, drop_rate=0.0, values="bf16", overrides=())
    with deltapack.open_pack(pack) as opened:
        assert opened["less"].kind == "shrunk"
    assert applied(pack) == tuned
    stored = pack_of({"dense": base_of(SHAPE)}, {"dense": tuned_of(SHAPE)}, "f32", drop_rate=0.0, values="f32", exclude="dense")
    with deltapack.open_pack(stored) as opened:
        assert opened["dense"].kind == "stored"
    assert applied(stored) == {"dense": tuned["dense"]}
    halved = cast(base_of(SHAPE).f64.astype(np.float32) + np.float32(0.5) * delta_of(SHAPE), "bf16")
    assert applied(stored, weight=0.5) == {"dense": halved}  # as a difference to the base, chunk by chunk


@pytest.mark.parametrize("chunk", [0, 3, 4])
def test_one_bit_in_any_chunk_is_noticed(chunk: int, pack_of: PackOf, tmp_path: Path) -> None:
    pack = made(pack_of, "seeded")
    start, base = tmp_path / "base.safetensors", base_of(SHAPE)
    data = bytearray(start.read_bytes())
    data[-len(base.raw) + 2 * (chunk * CHUNK + 99)] ^= 1
    start.write_bytes(data)
    for check in (lambda: deltapack.verify(pack, start), lambda: deltapack.apply(start, pack, tmp_path / "out.safetensors")):
        with pytest.raises(BaseMismatchError) as caught:
            check()
        assert caught.value.tensor == "w"
    base.bits.reshape(-1)[chunk * CHUNK + 99] ^= 1
    with deltapack.open_pack(pack) as opened, pytest.raises(BaseMismatchError):
        opened.add_to({"w": base.bits})
    with PackReader(pack) as reader:
        (entry,) = reader.index.entries
        records = term_chunks(reader, entry, entry.terms[0]).records
        payload = entry.terms[0].blob.end - sum(record.payload_bytes for record in records[chunk:])
    damaged = bytearray(pack.read_bytes())
    damaged[payload + 20] ^= 1
    pack.write_bytes(damaged)
    with pytest.raises(ChecksumError) as caught_damage:
        deltapack.verify(pack)
    assert caught_damage.value.found == f"chunk {chunk}"
    assert not read_model(tmp_path).keys() - {"w"}
