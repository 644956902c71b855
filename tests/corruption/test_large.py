"""Bits and sectors of a pack of many chunks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.builders import CHUNK, moved, random_tensor, write_file
from support.laws import SHARE
from support.tracing import traced

import deltapack

FLIPS = 100_000


@pytest.mark.slow
def test_bits_and_sectors_of_a_large_pack(tmp_path: Path, tried: Counter[str]) -> None:
    base = {f"{number}": random_tensor(number, (7 * CHUNK // 8, 2), "bf16") for number in range(2)}
    one, two, path = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "pack.dpk"
    write_file(one, base)
    write_file(two, {name: moved(tensor, 7) for name, tensor in base.items()})
    deltapack.compress(one, two, path, recipe=deltapack.Recipe(drop_rate=0.7, values="int4"))
    data = bytearray(path.read_bytes())
    with traced(path, data) as trace:
        deltapack.verify(path, one)
    assert len(data) > 400_000 and trace.bytes_read() == {*range(len(data))} and not trace.unchecked
    readers_of, clean = trace.readers_of(), bytes(data)
    rng = np.random.default_rng(3)
    for place, bit in zip(
        rng.integers(0, len(data), round(FLIPS * min(1, SHARE))).tolist(), rng.integers(0, 8, FLIPS).tolist(), strict=False
    ):
        data[place] ^= 1 << bit
        checks = readers_of(place)
        assert checks and all(check.tells() for check in checks), (place, bit)
        data[place] ^= 1 << bit
        tried["bits flipped of a large pack"] += 1
    for size in (512, 4096):
        for start in range(0, len(clean) - size, size):
            for content in (bytes(size), clean[max(0, start - size) :][:size], clean[start + size :][:size]):
                data[start : start + len(content)] = content
                places = [place for place in (start, start + size // 2, start + size - 1) if data[place] != clean[place]]
                assert all(readers_of(place) and all(check.tells() for check in readers_of(place)) for place in places)
                data[:] = clean
                tried["sectors zeroed or repeated of a large pack"] += bool(places)
