"""Tensors of four and five chunks: every path takes each chunk's own elements, masks, rows and digests, far into the tensor.

Elements are small integers, which are exact in all types here, and tell where they belong: a chunk in place of another shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.builders import CHUNK, TILE, Model, Tensor, cast, read_model, whole, write_file

import deltapack
from deltapack.codecs.chunk import coded_chunks
from deltapack.device.model_tensors import Slice
from deltapack.device.resident import send
from deltapack.errors import BaseMismatchError, ChecksumError
from deltapack.format.reader import PackReader
from deltapack.kernels import active

PackOf = Callable[..., Path]
Restore = Callable[..., Model]
SHAPE = (4300, 1000)
"""Four chunks and a part; rows cross their borders."""
NUMEL = 4_300_000
RECIPES: dict[str, dict[str, Any]] = {
    "seeded": {"drop_rate": 0.9},
    "seeded, more": {"drop_rate": 0.9},
    "gaps": {"drop_rate": 0.9, "index": "gaps"},
    "rice": {"drop_rate": 0.99, "index": "gaps"},
    "bitmap": {"drop_rate": 0.7, "index": "gaps"},
    "all": {"drop_rate": 0.0},
    "magnitude": {"sparsify": "magnitude", "drop_rate": 0.9},
}


def places(numel: int) -> NDArray[np.int64]:
    return np.arange(numel, dtype=np.int64)


@cache
def base_of() -> Tensor:
    return cast(((places(NUMEL) * 40503 >> 7) % 61).astype(np.float32).reshape(SHAPE), "bf16")


@cache
def delta_of(extra: int = 0) -> NDArray[np.float32]:
    """1 to 7, and 8 more for each chunk before; never 0; flat."""
    flat = places(NUMEL)
    return ((flat * 48271 >> 5) % 7 + 1 + 8 * (flat // CHUNK) + extra).astype(np.float32)


@cache
def tuned_of(extra: int = 0) -> Tensor:
    return cast(base_of().f64 + delta_of(extra).reshape(SHAPE), "bf16")


@dataclass(frozen=True)
class Made:
    """A pack, what was added to the base in it, and which elements it keeps."""

    path: Path
    extra: int
    kept: NDArray[np.int64]

    @property
    def base(self) -> Path:
        return self.path.with_name("base.safetensors")

    @property
    def expected(self) -> Tensor:
        out = base_of().bits.copy()
        out.reshape(-1)[self.kept] = tuned_of(self.extra).bits.reshape(-1)[self.kept]
        return Tensor("bf16", out)


Make = Callable[[str], Made]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that packs the tensor by a recipe, once."""
    folder = tmp_path_factory.mktemp("chunks")
    write_file(folder / "base.safetensors", {"w": base_of()})

    @cache
    def of(name: str) -> Made:
        extra, path = 32 * name.endswith("more"), folder / f"{name}.dpk"
        write_file(folder / "tuned.safetensors", {"w": tuned_of(extra)})
        recipe = deltapack.Recipe(values="bf16", rescale=1, **RECIPES[name])
        deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", path, recipe=recipe)
        with deltapack.open_pack(path) as pack:
            return Made(path, extra, pack["w"].to_sparse()[0])

    return of


def apply(base: Path, pack: Path, out: Path, **options: Any) -> Tensor:
    deltapack.apply(base, pack, out / "out.safetensors", force=True, **options)
    return read_model(out / "out.safetensors")["w"]


@pytest.mark.parametrize("name", ["seeded", "gaps", "rice", "bitmap", "all"])
def test_views_and_restoring(name: str, make: Make, tmp_path: Path) -> None:
    pack = make(name)
    with deltapack.open_pack(pack.path) as opened:
        entry = opened["w"]
        positions, values = entry.to_sparse()
        assert (np.diff(positions) > 0).all() and values.tobytes() == delta_of()[positions].tobytes()
        assert all(np.count_nonzero(positions // CHUNK == chunk) > 900 for chunk in range(5))
        dense = np.zeros(NUMEL, np.float32)
        dense[positions] = values
        assert entry.to_dense().tobytes() == dense.tobytes()
        sparse = entry.to_scipy()
        rows, columns = np.divmod(positions, SHAPE[1])
        assert sparse.shape == SHAPE and np.array_equal(sparse.indices, columns) and sparse.data.tobytes() == values.tobytes()
        assert np.array_equal(np.diff(sparse.indptr), np.bincount(rows, minlength=SHAPE[0]))
        found = entry.to_torch_sparse()
        assert np.array_equal(found.indices().numpy(), np.stack([rows, columns])) and found.values().numpy().tobytes() == values.tobytes()
        states = [{"w": base_of().bits.copy()} for _ in range(2)]
        opened.add_to(states[0])
        opened.load().add_to(states[1], workers=3)
    expected = pack.expected
    assert states[0]["w"].tobytes() == states[1]["w"].tobytes() == expected.raw
    assert apply(pack.base, pack.path, tmp_path) == expected
    deltapack.verify(pack.path, pack.base)


def test_seeded_masks_of_chunks_are_those_of_the_tensor(make: Make) -> None:
    """All tiles drawn in one go give the same places, and no chunk repeats another."""
    pack = make("seeded")
    with deltapack.open_pack(pack.path) as opened:
        (term,) = opened["w"].entry.terms
    lengths = np.full(-(-NUMEL // TILE), TILE, np.int64)
    lengths[-1] = NUMEL - (len(lengths) - 1) * TILE
    positions, _ = active().sample_positions(term.key, term.keep, 0, lengths)
    assert np.array_equal(pack.kept, positions)
    masks = [np.isin(places(CHUNK), pack.kept - chunk * CHUNK) for chunk in range(4)]
    for one, other in combinations(masks, 2):
        assert abs(np.count_nonzero(one & other) - 0.01 * CHUNK) < 5 * math.sqrt(0.01 * CHUNK)


def test_the_largest_of_all_chunks(make: Make) -> None:
    """Differences grow by chunk, so a tenth of all is in the last ones; of equal ones the first stay."""
    kept = make("magnitude").kept
    largest = np.argsort(-delta_of(), kind="stable")[: len(kept)]
    assert np.array_equal(kept, np.sort(largest)) and len(kept) == NUMEL // 10


@pytest.mark.parametrize("name", ["seeded", "gaps", "bitmap"])
def test_tables_of_what_lies_on_a_device(name: str, make: Make) -> None:
    """Each tile's row counts what comes before it, in its chunk and in the term; in one segment and in many."""
    pack = make(name)
    codes = cast(delta_of()[pack.kept], "bf16").bits
    with PackReader(pack.path) as reader:
        (entry,) = reader.index.entries
        counts = np.concatenate([record.counts for record in coded_chunks(reader, entry, entry.terms[0]).records])
        before = np.cumsum(counts) - counts
        for size in (1 << 26, 1 << 16):
            (ready,) = send(reader, torch.device("cpu"), 2, segment_bytes=size).terms.values()
            assert ready.column("count").tolist() == counts.tolist()
            assert ready.column("before").tolist() == before.tolist()
            assert ready.column("first").tolist() == (before - np.repeat(before[::16], 16)[: len(before)]).tolist()
            assert (len(ready.segments) > 4) is (size == 1 << 16)
            rows = zip(*(ready.column(column).tolist() for column in ("segment", "codes", "first", "count", "before")), strict=True)
            for segment, offset, first, count, start in rows:
                found = ready.segments[segment].numpy()[offset + 2 * first : offset + 2 * (first + count)]
                assert found.tobytes() == codes[start : start + count].tobytes()


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_merges(method: str, make: Make, tmp_path: Path) -> None:
    packs = [make("seeded, more"), make("gaps")]
    total, count = np.zeros(NUMEL, np.float32), np.zeros(NUMEL, np.float32)
    for pack in packs:
        total[pack.kept] += delta_of(pack.extra)[pack.kept]
        count[pack.kept] += 1
    if method == "ties":  # all signs agree, so it is the mean of what is kept
        total /= np.maximum(count, 1)
    changed, out = count > 0, base_of().bits.reshape(-1).copy()
    out[changed] = cast(base_of().f64.reshape(-1)[changed].astype(np.float32) + total[changed], "bf16").bits
    base, paths = packs[0].base, [pack.path for pack in packs]
    deltapack.merge(base, paths, tmp_path / "merged.safetensors", method=method)
    assert read_model(tmp_path / "merged.safetensors")["w"].raw == out.tobytes()
    deltapack.merge(base, paths, tmp_path / "merged.dpk", method=method)
    assert apply(base, tmp_path / "merged.dpk", tmp_path).raw == out.tobytes()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("held", ["rows", "columns"])
def test_live_models_and_slices(backend: str, held: str, make: Make) -> None:
    """Rows of the last chunks, or columns of all of them."""
    place = (slice(2000, 4299), slice(None)) if held == "rows" else (slice(None), slice(990, 1000))
    base = base_of().bits[place]
    state = {"w": torch.from_numpy(np.ascontiguousarray(base).view("<i2").copy()).view(torch.bfloat16)}
    bits = state["w"].view(torch.int16).numpy().view("<u2")
    first, second = make("seeded, more"), make("gaps")
    live = deltapack.attach(state, first.base, names={"w": Slice("w", of=place)}, backend=backend)
    for pack in (first, second):
        live.activate(pack.path)
        assert np.array_equal(bits, pack.expected.bits[place])
    live.deactivate()
    assert np.array_equal(bits, base)


def bytes_at(shape: tuple[int, ...], seed: int) -> Tensor:
    """Finite float8."""
    return Tensor("f8_e5m2", np.random.default_rng(seed).integers(0, 120, shape, np.uint8))


def test_rows_that_are_stored_and_tensors_that_are(pack_of: PackOf, applied: Restore, merged: Restore) -> None:
    """A tail of over four chunks that begins in the middle of one, a tensor stored whole, and one that is smaller so."""
    base = {"grown": bytes_at((1300, 1000), 1), "ids": whole("u8", np.zeros(NUMEL + 77)), "same": bytes_at((NUMEL,), 5)}
    tuned = {"grown": bytes_at((5600, 1000), 1), "ids": whole("u8", places(NUMEL + 77) * 2654435761 >> 11 & 255), "same": base["same"]}
    tuned["grown"].bits[:1300] = cast(base["grown"].f64 + 0.5, "f8_e5m2").bits
    tuned["new"] = bytes_at((NUMEL + 5,), 9)
    pack = pack_of(base, tuned, drop_rate=0.9, rescale=1, values="bf16")
    with deltapack.open_pack(pack) as opened:
        kinds = {name: entry.kind for name, entry in opened.items()}
        assert kinds == {"grown": "grown", "ids": "stored", "new": "stored", "same": "unchanged"}
        assert opened["ids"].to_dense().tobytes() == tuned["ids"].raw and opened["new"].to_dense().tobytes() == tuned["new"].raw
        rows = opened["grown"].to_dense()
        assert np.array_equal(rows[1300:], tuned["grown"].f64[1300:].astype(np.float32)) and rows[:1300].any()
    for result in (applied(pack), merged([pack])):
        assert {name: result[name] for name in ("ids", "new", "same")} == {name: tuned[name] for name in ("ids", "new", "same")}
        assert result["grown"].bits[1300:].tobytes() == tuned["grown"].bits[1300:].tobytes()
    deltapack.verify(pack, pack.with_name("base.safetensors"))


def test_tensors_that_are_smaller_whole_and_one_with_fewer_rows(pack_of: PackOf, applied: Restore) -> None:
    """Differences of float8 take more than their tensors do, which is seen when all chunks are encoded."""
    dense, noise = (bytes_at((NUMEL,), seed) for seed in (1, 2))
    base, fewer = {"dense": dense, "less": base_of()}, Tensor("bf16", tuned_of().bits[:3700])
    pack = pack_of(base, {"dense": noise, "less": fewer}, drop_rate=0.0, values="bf16")
    with deltapack.open_pack(pack) as opened:
        assert {name: entry.kind for name, entry in opened.items()} == {"dense": "stored", "less": "shrunk"}
    assert applied(pack) == {"dense": noise, "less": fewer}


def test_a_tensor_that_is_stored_whole_with_a_weight(pack_of: PackOf, applied: Restore) -> None:
    """As a difference to the base, chunk by chunk."""
    pack = pack_of({"w": base_of()}, {"w": tuned_of()}, exclude="w")
    halved = base_of().f64.astype(np.float32) + np.float32(0.5) * delta_of().reshape(SHAPE)
    assert applied(pack, weight=0.5) == {"w": cast(halved, "bf16")}


@pytest.mark.parametrize("chunk", [0, 3, 4])
def test_one_bit_in_any_chunk_is_noticed(chunk: int, make: Make, tmp_path: Path) -> None:
    pack = make("seeded")
    other = base_of().bits.copy()
    other.reshape(-1)[chunk * CHUNK + 99] ^= 1
    start = write_file(tmp_path / "base.safetensors", {"w": Tensor("bf16", other)})
    with pytest.raises(BaseMismatchError, match="'w'"):
        deltapack.verify(pack.path, start)
    with pytest.raises(BaseMismatchError, match="'w'"):
        deltapack.apply(start, pack.path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    with deltapack.open_pack(pack.path) as opened, pytest.raises(BaseMismatchError):
        opened.add_to({"w": other})
    with PackReader(pack.path) as reader:
        (entry,) = reader.index.entries
        records = coded_chunks(reader, entry, entry.terms[0]).records
        payload = entry.terms[0].blob.end - sum(record.payload_bytes for record in records[chunk:])
    damaged = bytearray(pack.path.read_bytes())
    damaged[payload + 20] ^= 1
    (tmp_path / "damaged.dpk").write_bytes(damaged)
    with pytest.raises(ChecksumError) as caught:
        deltapack.verify(tmp_path / "damaged.dpk")
    assert caught.value.found == f"chunk {chunk}"
