"""Each bit of packs of every codec, flipped: no check that reads it hands it on, and `verify` reads all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from support.damage import Family, remove, told, vector_families
from support.laws import SHARE
from support.tracing import Trace, traced

from deltapack.errors import DeltapackError


def traces_of(family: Family, out: Path) -> tuple[bytearray, dict[str, Trace]]:
    """What each use case reads of the first pack of a family, which stays in memory to be damaged."""
    path, traces = family.packs[0], {}
    data = bytearray(path.read_bytes())
    for name, reader in family.readers.items():
        trace = Trace()
        try:
            with traced(path, data, trace):
                reader(family, path, out)
        except DeltapackError:
            # Some vectors are of packs that are read alone, or with a base that is another.
            assert not family.tensors and name != "verify"
            continue
        finally:
            remove(out)
        # What is copied from pack to pack was read by a check, too.
        copied = {place for start, stop in trace.unchecked for place in range(start, stop)}
        assert copied <= trace.bytes_read(), (family.name, name)
        traces[name] = trace
    return data, traces


def flip_all(families: Iterable[Family], out: Path, tried: Counter[str], kind: str) -> Counter[str]:
    """Flip each bit, or one of each byte where time is short; return how many packs each use case read."""
    readings: Counter[str] = Counter()
    for family in families:
        data, traces = traces_of(family, out)
        readings.update(traces.keys())
        tried[f"packs, {kind}"] += 1
        assert traces["verify"].bytes_read() == {*range(len(data))}, family.name
        every = Trace({key: check for trace in traces.values() for key, check in trace.checks.items()})
        readers_of = every.readers_of()
        for place in range(len(data)):
            bits = range(8) if SHARE >= 1 else (place % 8,)
            for bit in bits:
                data[place] ^= 1 << bit
                for check in readers_of(place):
                    assert check.tells(), (family.name, check.name, place, bit)
                data[place] ^= 1 << bit
            tried[f"bits flipped, {kind}"] += len(bits)
            tried[f"checks of flipped bits, {kind}"] += len(bits) * len(readers_of(place))
    return readings


def test_of_vectors(tmp_path: Path, tried: Counter[str]) -> None:
    readings = flip_all(vector_families(tmp_path / "vectors"), tmp_path / "out", tried, "vectors of the specification")
    assert readings["verify"] > 170 and min(readings.values()) > 0.8 * readings["verify"], readings


def test_of_packs_for_every_use_case(made: list[Family], tmp_path: Path, tried: Counter[str]) -> None:
    readings = flip_all(made, tmp_path / "out", tried, "packs of every codec, every use case")
    assert len(readings) == 11 and min(readings.values()) >= 1 and readings["live model"] > 12, readings


def test_in_files(made: list[Family], tmp_path: Path, tried: Counter[str]) -> None:
    """Some bits, in files that are read from begin to end: an error and nothing left, or, of a byte that is not needed, the same result."""
    rng, pack, out = np.random.default_rng(5), tmp_path / "pack.dpk", tmp_path / "out"
    for family in made:
        clean = family.packs[0].read_bytes()
        for reader in family.readers:
            pack.write_bytes(clean)
            wanted = told(reader, family, pack, out)
            assert wanted is not None
            for _ in range(max(1, round(20 * SHARE))):
                place, bit = int(rng.integers(len(clean))), int(rng.integers(8))
                damaged = bytearray(clean)
                damaged[place] ^= 1 << bit
                pack.write_bytes(damaged)
                found = told(reader, family, pack, out)
                assert found is None or (found == wanted and not reader.startswith("verify")), (family.name, reader, place, bit)
                tried[f"flipped in a file: {'told' if found is None else 'not needed, same result'}"] += 1
