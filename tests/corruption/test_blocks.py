"""Blocks and blobs of packs that are gone, came twice, or stand where others were; packs that are too short or too long."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
import xxhash
from support.damage import Family, told, vector_families
from support.laws import SHARE
from support.tracing import Trace, in_memory, open_in_memory, traced

import deltapack
from deltapack.errors import DeltapackError, FormatError
from deltapack.format.reader import PackReader

PATH = Path("/packs/pack.dpk")


@pytest.fixture(scope="module")
def packs(made: list[Family], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Every pack of the families, and every vector."""
    folder = tmp_path_factory.mktemp("blocks")
    return [path.read_bytes() for path in dict.fromkeys(path for f in chain(made, vector_families(folder / "vectors")) for path in f.packs)]


def verified(data: bytearray) -> Trace:
    """What `verify` reads of a pack that is in memory."""
    with traced(PATH, data) as trace:
        deltapack.verify(PATH, workers=1)
    return trace


def changes(clean: bytes, size: int) -> Iterator[tuple[str, int, bytes]]:
    """What happens to sectors of a size: what it is called, where, and what stands there then."""
    for start in range(0, len(clean), size):
        here, before = clean[start : start + size], clean[max(0, start - size) : start]
        after = clean[start + size : start + 2 * size]
        yield "zeroed", start, bytes(len(here))
        yield "all ones", start, b"\xff" * len(here)
        yield "repeated", start, before[: len(here)]
        if len(after) == len(here):
            yield "swapped", start, after + here


def test_sectors(packs: list[bytes], tried: Counter[str]) -> None:
    for clean in packs:
        data = bytearray(clean)
        readers_of = verified(data).readers_of()
        for size in (16, 64, 512, 4096):
            for what, start, content in changes(clean, size):
                data[start : start + len(content)] = content
                places = [place for place in range(start, start + len(content)) if data[place] != clean[place]]
                checks = {check.name: check for place in places for check in readers_of(place)}
                assert bool(checks) == bool(places)
                assert all(check.tells() for check in checks.values()), (what, size, start)
                tried[f"blocks of 16 to 4,096 bytes {what}"] += bool(places)
                data[:] = clean


def test_every_length(packs: list[bytes], tried: Counter[str]) -> None:
    for clean in packs:
        step = 1 if SHARE >= 1 else 5
        lengths = [length for length in range(len(clean)) if length < 72 or length % step == 0 or length > len(clean) - 9]
        for length in lengths:
            with pytest.raises(FormatError):
                open_in_memory(PATH, bytearray(clean[:length]))
        tried["lengths cut to"] += len(lengths)


def test_bytes_before_and_after(packs: list[bytes], tried: Counter[str]) -> None:
    for number, clean in enumerate(packs):
        for more in (b"\0", b"\n", b"\xff" * 8, bytes(512), bytes(4096), clean[:64], clean, packs[number - 1]):
            for data in (clean + more, more + clean):
                with pytest.raises(FormatError):
                    open_in_memory(PATH, bytearray(data))
                tried["with bytes before or after"] += 1


def fitted(data: bytearray, moved: int) -> bytearray:
    """Make the prologue fit a pack of which the bytes before the index are some more, or fewer."""
    length, offset = struct.unpack_from("<QQ", data, 16)
    struct.pack_into("<QQ", data, 16, length + moved, offset + moved)
    struct.pack_into("<Q", data, 56, xxhash.xxh3_64_intdigest(bytes(data[:56])))
    return data


def test_spliced(packs: list[bytes], tried: Counter[str]) -> None:
    """Bytes taken out, put in, or taken from another pack, with a prologue that fits."""
    rng = np.random.default_rng(8)
    for number, clean in enumerate(packs):
        end = struct.unpack_from("<Q", clean, 24)[0]
        for _ in range(round(10 * SHARE) if end > 72 else 0):
            start, size = int(rng.integers(64, end)), int(rng.integers(1, 65))
            other = packs[int(rng.integers(number + 1))]
            for what, middle, rest in (
                ("bytes taken out", b"", start + size),
                ("bytes put in", bytes(rng.integers(0, 256, size, np.uint8)), start),
                ("bytes of another pack put in", other[64 : 64 + size], start),
                ("bytes of another pack instead", other[start : start + size], start + size),
                ("aligned bytes taken out", b"", start + 8),
            ):
                rest = min(rest, end)
                data = bytearray(clean[:start] + middle + clean[rest:])
                if data == clean:
                    continue
                fitted(data, len(data) - len(clean))
                with in_memory({PATH: data}), pytest.raises(DeltapackError):
                    deltapack.verify(PATH, workers=1)
                tried[f"spliced: {what}"] += 1


def test_blobs_of_one_length_change_places(made: list[Family], tried: Counter[str]) -> None:
    """Within a pack, and between packs of one base; nothing made to fit."""
    for family in made:
        one, other = (path.read_bytes() for path in family.packs)
        data = bytearray(one)
        readers_of = verified(data).readers_of()
        blobs = [[(blob.offset, blob.end) for blob in PackReader(path).index.blobs] for path in family.packs]
        pairs = [*combinations(blobs[0], 2), *((mine, theirs) for mine in blobs[0] for theirs in blobs[1])]
        for number, ((start, stop), (from_, to)) in enumerate(pairs):
            within = number < len(blobs[0]) * (len(blobs[0]) - 1) // 2
            theirs = (one if within else other)[from_:to]
            if to - from_ != stop - start or theirs == one[start:stop]:
                continue
            data[start:stop] = theirs
            if within:
                data[from_:to] = one[start:stop]
            for place in (place for place in range(start, stop) if data[place] != one[place]):
                assert all(check.tells() for check in readers_of(place)) and readers_of(place)
                break
            tried["blobs that change places, " + ("within a pack" if within else "between packs")] += 1
            data[:] = one


def test_in_files(made: list[Family], tmp_path: Path, tried: Counter[str]) -> None:
    pack, out = tmp_path / "pack.dpk", tmp_path / "out"
    rng = np.random.default_rng(9)
    for family in made:
        clean = family.packs[0].read_bytes()
        for reader in family.readers:
            for data in (clean[: int(rng.integers(len(clean)))], clean + b"\n", clean[:64] + bytes(len(clean) - 64), clean + clean):
                pack.write_bytes(data)
                assert told(reader, family, pack, out) is None, (family.name, reader)
                tried["files cut, prolonged, zeroed: told"] += 1
