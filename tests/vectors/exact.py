"""Exact chunks (spec/codecs/exact.md) written number by number, for make_vectors.py; uses neither the package nor a decoder.

A chunk is made as a tree of what it says, `Json`, which faults edit before it is spelt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import zstandard

Json = dict[str, Any]
TILE, LOW = 65_536, 1 << 15


class Kind(NamedTuple):
    """Numbers of a type: bits, whether sign and magnitude, context shift and mask, head, step shift."""

    width: int
    signed: bool = False
    shift: int = 0
    mask: int = 0
    head: int = 1
    step_shift: int = 0


KINDS = {
    "f64": Kind(64, True, 52, 255),
    "f32": Kind(32, True, 23, 255, 1, 17),
    "c64": Kind(32, True, 23, 255, 1, 17),
    "bf16": Kind(16, True, 7, 255, 2, 1),
    "f16": Kind(16, True, 10, 31, 2, 4),
    "f8_e4m3fn": Kind(8, True, 3, 15, 7),
    "f8_e5m2": Kind(8, True, 2, 31, 7),
}
SIZES = {"f8_e8m0fnu": 1, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u64": 8, "u32": 4, "u16": 2, "u8": 1, "bool": 1}
INTEGERS = {8: Kind(64), 4: Kind(32), 2: Kind(16, head=2), 1: Kind(8, shift=4, mask=15, head=7)}
BYTE = Kind(8, head=7)


def kind_of(dtype: str) -> Kind:
    """Numbers of an element type."""
    return KINDS[dtype] if dtype in KINDS else INTEGERS[SIZES.get(dtype, 1)]


def numbers(data: bytes, kind: Kind) -> list[int]:
    """The numbers of elements; of a raw type each byte is one."""
    size = kind.width // 8
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def signed_ordinal(number: int, kind: Kind) -> int:
    """The ordinal as an integer with a sign."""
    half = 1 << kind.width - 1
    if number < half:
        return number
    return half - 1 - number if kind.signed else number - 2 * half


def symbol_of(p: int, y: int, kind: Kind, far: int | None) -> tuple[int, int, int]:
    """Symbol, raw bits and how many."""
    half, top = 1 << kind.width - 1, 1 << kind.width
    exponent = y >> kind.shift & kind.mask
    if far is not None and (p < half) != (y < half) and exponent >= far:
        return 128 + exponent - far, y & (1 << kind.shift) - 1, kind.shift
    d = signed_ordinal(y, kind) - signed_ordinal(p, kind)
    d = -d if kind.signed and p >= half else d
    d = (d + half) % top - half
    m = abs(d)
    r = max(0, m.bit_length() - 1 - kind.head)
    return 2 * ((r << kind.head) + (m >> r)) - (d < 0), m & (1 << r) - 1, r


def scaled(counts: dict[int, int], total: int) -> dict[int, int]:
    """Frequencies that sum to a total, in proportion to counts."""
    size = sum(counts.values())
    out = {symbol: max(1, count * total // size) for symbol, count in counts.items()}
    largest = max(out, key=lambda symbol: out[symbol])
    out[largest] += total - sum(out.values())
    return out


def rans(
    contexts: Sequence[int], symbols: Sequence[int], rows: list[dict[int, int]], precision: int, lanes: int
) -> tuple[list[int], list[int]]:
    """States and words of a tile."""
    states, words = [LOW] * lanes, []
    for i in range(len(symbols) - 1, -1, -1):
        row, z = rows[contexts[i]], states[i % lanes]
        frequency, cum = row[symbols[i]], sum(count for symbol, count in row.items() if symbol < symbols[i])
        if z >= frequency << 31 - precision:
            words.append(z & 0xFFFF)
            z >>= 16
        states[i % lanes] = (z // frequency << precision) + z % frequency + cum
    return states, words[::-1]


def tiles_of(contexts: Sequence[int], symbols: Sequence[int], rows: list[dict[int, int]], table: Json, raw: Any) -> Json:
    """The tiles of symbols; `raw` has number and width of the raw bits of each symbol, or is none."""
    out: Json = {"words": [], "states": [], "raw": None if raw is None else [], "sizes": []}
    for start in range(0, len(symbols), TILE):
        inside = slice(start, start + TILE)
        states, words = rans(contexts[inside], symbols[inside], rows, table["precision"], table["lanes"])
        out["states"].append(states)
        out["words"].append(words)
        out["sizes"].append([len(words)])
        if raw is not None:
            bits, at = 0, 0
            for value, width in raw[inside]:
                bits, at = bits | value << at, at + width
            out["raw"].append(bits.to_bytes(-(-at // 8), "little"))
            out["sizes"][-1].append(at)
    return out


def dense(base: Sequence[int], tuned: Sequence[int], kind: Kind, **how: Any) -> Json:
    """A chunk of form `dense`. `how`: precision, lanes, starts and steps of each class, classes, far, symbols to count besides."""
    starts, classes, far = how.get("starts", [[0]]), how.get("classes", [0] * len(base)), how.get("far")
    steps = how.get("steps", [None] * len(starts))
    table: Json = {"precision": how.get("precision", 10), "lanes": how.get("lanes", 4), "far": far, "classes": []}
    table["flags"] = (len(starts) == 2) + 2 * (far is not None)
    contexts, coded = [], []
    for i, (x, y) in enumerate(zip(base, tuned, strict=True)):
        own = classes[i // 128]
        byte = x >> kind.shift & kind.mask
        contexts.append(sum(len(starts[k]) for k in range(own)) + sum(start <= byte for start in starts[own]) - 1)
        p = x if steps[own] is None else (x + steps[own][x >> kind.step_shift & 63]) % (1 << kind.width)
        coded.append(symbol_of(p, y, kind, far))
    rows: list[dict[int, int]] = []
    for number in range(sum(map(len, starts))):
        counts: dict[int, int] = dict(how.get("besides", {}))
        for context, (symbol, _, _) in zip(contexts, coded, strict=True):
            if context == number:
                counts[symbol] = counts.get(symbol, 0) + 1
        rows.append(scaled(counts or {0: 1}, 1 << table["precision"]))
    left = iter(rows)
    for own_starts, own_steps in zip(starts, steps, strict=True):
        spelt = [next(left) for _ in own_starts]
        ranges = [[start, min(row), max(row)] for start, row in zip(own_starts, spelt, strict=True)]
        frequencies = [[row.get(symbol, 0) for symbol in range(min(row), max(row) + 1)] for row in spelt]
        table["classes"].append({"ranges": ranges, "frequencies": frequencies, "steps": own_steps, "count": len(ranges)})
    raw = [(value, width) for _, value, width in coded]
    blocks = bytes(classes[: -(-len(base) // 128)]) if len(starts) == 2 else None
    tiles = tiles_of(contexts, [symbol for symbol, _, _ in coded], rows, table, raw)
    return {"form": 2, "table": table, "classes": blocks, "tiles": tiles, "width": kind.width}


def planes(numbers: Sequence[int], kind: Kind, modes: Sequence[str], base: Sequence[int] | None = None) -> Json:
    """A chunk of form `planes`."""
    top = 1 << kind.width
    if base is not None:
        values = [(y - x) % top for x, y in zip(base, numbers, strict=True)]
    else:
        values = [(y << 1) % top + (y >> kind.width - 1) if kind.signed else y for y in numbers]
    rows = [bytes(value >> 8 * place & 255 for value in values) for place in range(kind.width // 8)]
    return {"form": 1, "kind": int(base is not None), "planes": [plane(row, mode) for row, mode in zip(rows, modes, strict=True)]}


def plane(row: bytes, mode: str) -> Json:
    """A plane in a mode."""
    if mode == "tiles":
        return {
            "mode": 4,
            "tiles": [plane(row[start : start + TILE], "zstd" if start else "constant") for start in range(0, len(row), TILE)],
        }
    if mode != "coded":
        number = {"stored": 0, "constant": 1, "zstd": 3}[mode]
        content = {"stored": row, "constant": row[:1], "zstd": zstandard.ZstdCompressor(level=3).compress(row)}[mode]
        return {"mode": number, "bytes": content}
    counts = {symbol: row.count(symbol) for symbol in sorted(set(row))}
    frequencies = scaled(counts, 1 << 12)
    spelt = [frequencies.get(symbol, 0) for symbol in range(min(row), max(row) + 1)]
    only = {"ranges": [[0, min(row), max(row)]], "frequencies": [spelt], "steps": None, "count": 1}
    table: Json = {"precision": 12, "lanes": 8, "far": None, "flags": 0, "classes": [only]}
    return {"mode": 2, "table": table, "tiles": tiles_of([0] * len(row), list(row), [frequencies], table, None)}


def levels(codes: Sequence[int], precision: int, lanes: int) -> bytes:
    """The levels of a chunk (spec/codecs/values.md)."""
    if not codes:
        return b""
    symbols = [2 * code if code >= 0 else -2 * code - 1 for code in codes]
    row = scaled({symbol: symbols.count(symbol) for symbol in set(symbols)}, 1 << precision)
    tiles = tiles_of([0] * len(symbols), symbols, [row], {"precision": precision, "lanes": lanes}, None)
    first, last = min(row), max(row)
    return (
        bytes([precision, lanes, first, last])
        + b"".join(varint(row.get(symbol, 0)) for symbol in range(first, last + 1))
        + spell_tiles(tiles)
    )


def sparse(places: Sequence[int], shift: int, inner: Json) -> Json:
    """A chunk of form `sparse`; `inner` holds the numbers at these places."""
    gaps, last = [], -1
    for place in places:
        gaps.append(place - last - 1)
        last = place
    low, unary, at = 0, 0, 0
    for number, gap in enumerate(gaps):
        low |= (gap & (1 << shift) - 1) << number * shift
        at += gap >> shift
        unary |= 1 << at
        at += 1
    content = low.to_bytes(-(-len(gaps) * shift // 8), "little") + unary.to_bytes(-(-at // 8), "little")
    return {"form": 3, "shift": shift, "count": len(places), "gaps": content, "inner": inner}


def shared(chunk: Json, number: int = 0, lanes: int = 4) -> tuple[Json, bytes]:
    """A dense chunk whose table is shared, and the table as a blob. `lanes` are those that the chunk was made with."""
    blob = stream(spell_table(chunk["table"] | {"lanes": 32}, chunk["width"]))
    return chunk | {"form": 4, "reference": 4 * number + (1, 4, 8, 32).index(lanes)}, blob


def varint(value: int) -> bytes:
    """A varint."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def stream(raw: bytes, zstd: bool = False) -> bytes:
    """A stream."""
    stored = zstandard.ZstdCompressor(level=3).compress(raw) if zstd else raw
    return varint(len(raw)) + varint(len(stored)) + stored


def spell_table(table: Json, width: int) -> bytes:
    """The raw bytes of a table."""
    out = bytes([table["precision"], table["lanes"], table["flags"]])
    out += b"" if table["far"] is None else bytes([table["far"]])
    for own in table["classes"]:
        out += bytes([own["count"] | (0 if own["steps"] is None else 128)])
        before = 0
        for step in own["steps"] or []:
            out += varint((step - before) % (1 << width))
            before = step
        out += b"".join(map(bytes, own["ranges"])) + b"".join(varint(count) for row in own["frequencies"] for count in row)
    more: bytes = table.get("more", b"")
    return out + more


def spell_tiles(tiles: Json) -> bytes:
    """The bytes of tiles."""
    out = b"".join(tiles.get("spelt", {}).get(i, b"".join(map(varint, sizes))) for i, sizes in enumerate(tiles["sizes"]))
    out += b"".join(z.to_bytes(4, "little") for states in tiles["states"] for z in states)
    out += b"".join(word.to_bytes(2, "little") for words in tiles["words"] for word in words)
    return out + b"".join(tiles["raw"] or [])


def spell_plane(row: Json) -> bytes:
    """The bytes of a plane."""
    if row["mode"] == 4:
        return b"\x04" + b"".join(map(spell_plane, row["tiles"]))
    if row["mode"] == 2:
        return b"\x02" + stream(spell_table(row["table"], 8)) + spell_tiles(row["tiles"])
    content: bytes = row["bytes"]
    return bytes([row["mode"]]) + (varint(len(content)) if row["mode"] == 3 else b"") + content


def spell(chunk: Json) -> bytes:
    """The bytes of a chunk."""
    out = bytes([chunk["form"]])
    if chunk["form"] == 1:
        out += bytes([chunk["kind"]])
        out += b"".join(map(spell_plane, chunk["planes"]))
    if chunk["form"] == 4:
        out += varint(chunk["reference"])
    if chunk["form"] == 2:
        out += chunk.get("table_stream") or stream(spell_table(chunk["table"], chunk["width"]), chunk.get("zstd", False))
    if chunk["form"] in (2, 4):
        out += b"" if chunk["classes"] is None else stream(chunk["classes"], chunk.get("zstd", False))
        out += spell_tiles(chunk["tiles"])
    if chunk["form"] == 3:
        size = varint(chunk.get("size", len(chunk["gaps"])))
        out += bytes([chunk["shift"]]) + varint(chunk["count"]) + size + chunk["gaps"] + spell(chunk["inner"])
    more: bytes = chunk.get("more", b"")
    return out + more


@dataclass(frozen=True)
class Vector:
    """A chunk with what it is decoded with, and what it gives or which rule it breaks."""

    dtype: str
    base: Sequence[int] | None
    result: Sequence[int]
    chunk: bytes
    tables: Sequence[bytes] = ()

    def document(self, rule: str | None = None) -> Json:
        """As exact.json spells it."""
        kind = kind_of(self.dtype)
        size, parts = kind.width // 8, 2 if self.dtype == "c64" else 1
        out: Json = {"dtype": self.dtype, "itemsize": size * parts, "length": len(self.result) // parts}
        out["base"] = None if self.base is None else runs(self.base, size)
        out["tables"] = [table.hex() for table in self.tables]
        return out | {"chunk": self.chunk.hex()} | ({"rule": rule} if rule else {"result": runs(self.result, size)})


def runs(numbers: Sequence[int], size: int) -> list[list[Any]]:
    """Numbers as [hex, repeat]."""
    out: list[list[Any]] = []
    for number in numbers:
        spelt = number.to_bytes(size, "little").hex()
        if out and out[-1][0] == spelt:
            out[-1][1] += 1
        else:
            out.append([spelt, 1])
    joined: list[list[Any]] = []
    for spelt, repeat in out:
        if repeat == 1 and joined and joined[-1][1] == 1:
            joined[-1][0] += spelt
        else:
            joined.append([spelt, repeat])
    return joined


Edit = Callable[[Json], object]


def edited(make: Callable[[], Json], edit: Edit) -> bytes:
    """The bytes of a chunk with a fault."""
    chunk = make()
    edit(chunk)
    return spell(chunk)


def noise(count: int, seed: int) -> Iterator[int]:
    """Numbers of 64 bits that look random (SplitMix64)."""
    state = seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % (1 << 64)
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
        z = (z ^ z >> 27) * 0x94D049BB133111EB % (1 << 64)
        yield z ^ z >> 31
