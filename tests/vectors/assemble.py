"""Bytes of packs from plain descriptions, valid or not, for make_vectors.py only. Shares no code with deltapack."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import xxhash
import zstandard
from vectors import exact, scalar
from vectors.scalar import CHUNK, ITEMSIZE, TILE, itemsize, size_of

ODD = b'{"a" :[ 1,{ },[\t],"x\\\\","\\"]"], "b":\r\n"{,", "c": 1e5 2}]] ,"cut\\"'
"""Not quite JSON: what is spread and joined are tokens."""
BASE_FILES = {
    "LICENSE": b"from the base",
    "vocab.txt": b"".join(b"token %d\n" % (7 * i % 61) for i in range(60)),
    "merges.txt": b"a b\r\nc d\r\n",
    "odd.json": ODD,
}
"""The side files of every base."""
GROUPED = ("int8", "int4", "int3", "int2", "sign")
"""Value codecs with a scale for each group, unless a term says otherwise."""
SCALED = (*GROUPED, "ternary", "uniform")
FEATURES = ("stratified", "ternary", "uniform", "factors")
"""Codecs that are features of that name."""
FLOATS = ("f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2")
WIDTH = {"f32": 32, "bf16": 16, "f16": 16, "int8": 8, "int4": 4, "int3": 4, "int2": 2, "sign": 1}
Json = dict[str, Any]


@dataclass(frozen=True)
class Tensor:
    """An element type, a shape and the elements as bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def bits(self, i: int) -> int:
        """The bits of element i."""
        size = ITEMSIZE[self.dtype]
        return int.from_bytes(self.data[i * size : (i + 1) * size], "little")

    @property
    def numel(self) -> int:
        """The number of elements."""
        return len(self.data) // itemsize(self.dtype)

    @property
    def chunk_digests(self) -> list[bytes]:
        """The digests of the chunks."""
        step = CHUNK * itemsize(self.dtype)
        return [xxhash.xxh3_128_digest(self.data[i : i + step]) for i in range(0, len(self.data), step)]

    @property
    def digest(self) -> str:
        """The root digest."""
        return self.root.hex(self.dtype, self.shape)

    @property
    def root(self) -> Root:
        """The root digest, for a type and shape that may still be edited."""
        return Root(self.chunk_digests)


@dataclass
class Root:
    """A root digest in the making: the type and shape that the index states in the end go into it."""

    chunk_digests: list[bytes]

    def hex(self, dtype: str, shape: Any) -> str:
        """The digest that the index states."""
        text = f"{dtype}\0{','.join(map(str, shape or ()))}\0".encode()
        return xxhash.xxh3_128_hexdigest(text + b"".join(self.chunk_digests))


@dataclass
class Blob:
    """Bytes, how many of them the hash covers (None: all), and what is wrong with the hash."""

    data: bytes
    hashed: int | None = None
    flip: int = 0

    @property
    def hash(self) -> str:
        """The hash that the index states."""
        return f"{xxhash.xxh3_64_intdigest(self.data[: self.hashed]) ^ self.flip:016x}"


def zstd(raw: bytes, **options: Any) -> bytes:
    """One frame."""
    if options:
        params = zstandard.ZstdCompressionParameters.from_level(1, **options)
        return zstandard.ZstdCompressor(compression_params=params).compress(raw)
    return zstandard.ZstdCompressor(level=1).compress(raw)


def zstd_after(before: bytes, raw: bytes) -> bytes:
    """One frame whose matches may begin in what stands before its content."""
    prefix = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(level=19, dict_data=prefix).compress(raw)


def stream(raw: bytes) -> tuple[bytes, int]:
    """Stored bytes and raw length."""
    frame = zstd(raw)
    return (frame if len(frame) < len(raw) else raw), len(raw)


def planes(raw: bytes, size: int) -> bytes:
    """Elements to byte planes."""
    return b"".join(raw[i::size] for i in range(size))


def pack_bits(words: list[int], width: int) -> bytes:
    """Words of `width` bits, least significant bit first."""
    total = sum((word & (1 << width) - 1) << i * width for i, word in enumerate(words))
    return total.to_bytes(-(-len(words) * width // 8), "little")


def tiles_of(start: int, stop: int) -> list[tuple[int, int]]:
    """The tiles of a chunk."""
    return [(a, min(a + TILE, stop)) for a in range(start, stop, TILE)]


def chunks_of(count: int) -> list[tuple[int, int]]:
    """The chunks of a tensor."""
    return [(a, min(a + CHUNK, count)) for a in range(0, count, CHUNK)]


def gaps_of(kept: list[list[int]]) -> list[int]:
    """The gaps of the positions of several tiles."""
    return [p - (tile[i - 1] + 1 if i else 0) for tile in kept for i, p in enumerate(tile)]


def encode_gaps(kept: list[list[int]], shift: int) -> bytes:
    """Codec `gaps`."""
    gaps = gaps_of(kept)
    if shift == 0:
        return b"".join(b"\xff" * (gap // 255) + bytes([gap % 255]) for gap in gaps)
    unary, at = 0, 0
    for gap in gaps:
        at += gap >> shift
        unary |= 1 << at
        at += 1
    return pack_bits(gaps, shift) + unary.to_bytes(-(-at // 8), "little")


def encode_codes(codec: str, codes: list[int], coder: tuple[int, int] = (10, 4)) -> bytes:
    """Codes: bits of floats, or integers; precision and lanes where these are levels."""
    if codec in ("f32", "bf16", "f16"):
        size = WIDTH[codec] // 8
        return planes(b"".join(code.to_bytes(size, "little") for code in codes), size)
    if codec == "uniform":
        return exact.levels(codes, *coder)
    if codec == "ternary":
        digits = [code % 3 for code in codes]
        return bytes(sum(digit * 3**j for j, digit in enumerate(digits[i : i + 5])) for i in range(0, len(digits), 5))
    if codec == "sign":
        codes = [int(code < 0) for code in codes]
    return pack_bits(codes, WIDTH[codec])


class Added(Protocol):
    """A term, whatever its values are."""

    @property
    def features(self) -> Collection[str]:
        """What a reader has to know."""

    def with_factor(self, factor: str) -> Added:
        """The term with another factor, unless it keeps all elements (section 6.1)."""

    def entry(self, common: int) -> Json:
        """The index entry, with a `Blob` in place of each reference."""

    def added(self, common: int, weight: float) -> dict[int, float]:
        """Position to value (section 6.1)."""


@dataclass
class Term:
    """A term: its index entry, what it adds to each kept element, and hooks to spoil its chunks."""

    index: str
    values: str
    positions: list[int]
    codes: list[int]
    scales: list[int] = field(default_factory=list)  # bf16 bits, one per group
    factor: int = 0x3F800000
    params: Json = field(default_factory=dict)
    spoil: Callable[[Json], None] | None = None  # edits {"streams", "counts", ...} of a chunk before it is written
    alike: str = ""  # "tensor", "rows" or "outer", if that is how codes are scaled
    scale: int = 0x3F800000  # then: f32 bits
    rows: list[int] = field(default_factory=list)  # bytes; `positions` are none of a row that is dropped
    columns: list[int] = field(default_factory=list)  # bytes; as many as the rows have elements, also where they are not written
    lines: Blob | None = None  # in place of the one that follows from these
    coder: tuple[int, int] = (10, 4)  # precision and lanes of levels

    def kept(self, start: int, stop: int) -> list[list[int]]:
        """The kept positions of each tile of a chunk, from the start of the tile."""
        return [[p - a for p in self.positions if a <= p < b] for a, b in tiles_of(start, stop)]

    def with_factor(self, factor: str) -> Term:
        """The term with another factor, unless it keeps all elements (section 6.1)."""
        return self if self.index == "all" else replace(self, factor=scalar.element("f32", float(factor)))

    def blob(self, common: int) -> Blob:
        """The chunked blob."""
        table, payloads, code, scale = b"", b"", 0, 0
        for start, stop in chunks_of(common):
            kept = self.kept(start, stop)
            n, groups = sum(map(len, kept)), sum(-(-len(tile) // 128) for tile in kept)
            raws = []
            if self.index == "gaps":
                raws.append(encode_gaps(kept, self.params["shift"]))
            if self.index == "bitmap":
                bits = sum(1 << p - start for p in self.positions if start <= p < stop)
                raws.append(bits.to_bytes(-(-(stop - start) // 8), "little"))
            raws.append(encode_codes(self.values, self.codes[code : code + n], self.coder))
            if self.values in GROUPED and not self.alike:
                raw = b"".join(bits.to_bytes(2, "little") for bits in self.scales[scale : scale + groups])
                raws.append(planes(raw, 2))
            code, scale = code + n, scale + groups
            chunk: Json = {"streams": [stream(raw) for raw in raws], "counts": [len(tile) for tile in kept], "flip": 0}
            if self.spoil:
                self.spoil(chunk)
            payload = b"".join(stored for stored, _ in chunk["streams"])
            lengths = [n for stored, raw_length in chunk["streams"] for n in (len(stored), raw_length)]
            table += struct.pack("<Q", xxhash.xxh3_64_intdigest(payload) ^ chunk["flip"])
            table += struct.pack(f"<{len(lengths) + len(chunk['counts'])}I", *lengths, *chunk["counts"])
            payloads += payload
        return Blob(table + payloads, len(table))

    def entry(self, common: int) -> Json:
        """The index entry, with a `Blob` in place of its reference."""
        out = {"index": self.index, "values": self.values, "factor": f"{self.factor:08x}", "nnz": len(self.positions)}
        out |= {"scales": self.alike, "scale": f"{self.scale:08x}"} if self.alike else {}
        if self.alike in ("rows", "outer"):
            raw = bytes(self.rows) + (bytes(self.columns) if self.alike == "outer" else b"")
            out["lines"] = self.lines or Blob(stream(raw)[0])
        return out | self.params | {"blob": self.blob(common)}

    @property
    def features(self) -> set[str]:
        """What a reader has to know."""
        return {self.index, self.values} & set(FEATURES) | ({"scales"} if self.alike else set())

    def step(self, p: int, factor: float) -> float:
        """What the code of an element is multiplied with, where `alike` says how."""
        step = scalar.number("f32", self.scale)
        if self.alike == "rows":
            step = scalar.round_f32(scalar.line(self.rows[p // len(self.columns)]) * step)
        if self.alike == "outer":
            both = scalar.line(self.rows[p // len(self.columns)]) * scalar.line(self.columns[p % len(self.columns)])
            step = scalar.round_f32(scalar.round_f32(both) * step)
        return scalar.round_f32(step * factor)

    def added(self, common: int, weight: float) -> dict[int, float]:
        """Position to value (section 6.1); a zero trit adds none."""
        factor = scalar.round_f32(scalar.number("f32", self.factor) * scalar.round_f32(weight))
        coded = zip(self.positions, self.codes, strict=True)
        if self.alike and self.values in SCALED:
            return {p: scalar.round_f32(code * self.step(p, factor)) for p, code in coded if code or self.values != "ternary"}
        if self.values not in SCALED:
            return {p: scalar.round_f32(scalar.number(self.values, code) * factor) for p, code in coded}
        out, scale, codes = {}, iter(self.scales), iter(self.codes)
        for start, stop in chunks_of(common):
            for (a, _), tile in zip(tiles_of(start, stop), self.kept(start, stop), strict=True):
                for i, p in enumerate(tile):
                    if i % 128 == 0:
                        step = scalar.round_f32(scalar.number("bf16", next(scale)) * factor)
                    out[a + p] = scalar.round_f32(next(codes) * step)
        return out


@dataclass(frozen=True)
class Addend:
    """What a pack adds to a tensor: its terms, or the difference of a tensor that it stores whole; and the weight."""

    terms: Sequence[Added]
    whole: Tensor | None = None
    weight: float = 1.0

    def values(self, old: Tensor, common: int) -> list[dict[int, float]]:
        """Position to value, for each term (sections 6.1 and 9.2)."""
        out = [term.added(common, self.weight) for term in self.terms]
        if self.whole is not None:
            weight = scalar.round_f32(self.weight)
            out.append({i: scalar.round_f32(self._difference(old, i) * weight) for i in range(common)})
        return out

    def _difference(self, old: Tensor, i: int) -> float:
        assert self.whole is not None
        new, was = (scalar.round_f32(scalar.number(t.dtype, t.bits(i))) for t in (self.whole, old))
        return scalar.round_f32(new - was)


def numel(shape: tuple[int, ...]) -> int:
    """The number of elements."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def add_up(old: Tensor, addends: list[Addend], dtype: str, shape: tuple[int, ...], tail: bytes = b"") -> Tensor:
    """The common elements of a tensor with all that is added (section 6.2), and the rest as it is."""
    common, size, out = min(numel(shape), old.numel), ITEMSIZE[dtype], bytearray()
    added: dict[int, list[float]] = {}
    for values in (values for addend in addends for values in addend.values(old, common)):
        for p, value in values.items():
            added.setdefault(p, []).append(value)
    if dtype == old.dtype:
        out += old.data[: common * size]
    todo = range(common) if dtype != old.dtype else added
    out += bytes(common * size - len(out))
    known: dict[tuple[int, bytes], bytes] = {}  # by element and all that is added to it: large tensors have few of these
    for p in todo:
        own = added.get(p, [])
        key = old.bits(p), struct.pack(f"<{len(own)}d", *own)
        if key not in known:
            known[key] = scalar.patch(old.dtype, key[0], dtype, own).to_bytes(size, "little")
        out[p * size : (p + 1) * size] = known[key]
    return Tensor(dtype, shape, bytes(out) + tail)


def blends(old: Tensor, new: Tensor) -> bool:
    """Whether a stored tensor can be seen as a difference (section 9.2)."""
    return old.shape == new.shape and old.dtype in FLOATS and new.dtype in FLOATS


@dataclass(frozen=True)
class Said:
    """What a pack says of a base tensor, for those who work out what several packs give."""

    kind: str
    name: str
    result: Tensor
    terms: Sequence[Added] = ()
    tail: bytes = b""


def stored_blob(data: bytes, size: int, spoil: Callable[[Json], None] | None = None) -> Blob:
    """Elements held whole."""
    table, payloads, step = b"", b"", CHUNK * size
    for i in range(0, len(data), step):
        raw = planes(data[i : i + step], size)
        chunk: Json = {"streams": [stream(raw)], "flip": 0}
        if spoil:
            spoil(chunk)
        payload, length = chunk["streams"][0]
        table += struct.pack("<QII", xxhash.xxh3_64_intdigest(payload) ^ chunk["flip"], len(payload), length)
        payloads += payload
    return Blob(table + payloads, len(table))


def chunk_blob(chunks: list[bytes], spoil: Callable[[Json], None] | None = None) -> Blob:
    """A step of an exact tensor."""
    table, payloads = b"", b""
    for data in chunks:
        chunk: Json = {"streams": [(data, len(data))], "flip": 0}
        if spoil:
            spoil(chunk)
        payload, length = chunk["streams"][0]
        table += struct.pack("<QII", xxhash.xxh3_64_intdigest(payload) ^ chunk["flip"], len(payload), length)
        payloads += payload
    return Blob(table + payloads, len(table))


def is_partner(old: Tensor, new: Tensor) -> bool:
    """Whether an exact tensor starts from this one (section 3.12)."""
    shapes = old.shape == new.shape or (len(old.shape) == len(new.shape) > 0 and old.shape[1:] == new.shape[1:])
    return shapes and (old.dtype == new.dtype or (old.dtype in FLOATS and new.dtype in FLOATS))


def as_type(old: Tensor, dtype: str) -> bytes:
    """The elements of a partner in the type of the exact tensor."""
    if old.dtype == dtype:
        return old.data
    numbers = (scalar.patch(old.dtype, old.bits(i), dtype, []) for i in range(old.numel))
    return b"".join(number.to_bytes(ITEMSIZE[dtype], "little") for number in numbers)


def encode_step(before: bytes | None, new: Tensor) -> list[bytes]:
    """The chunks of a step that starts from these elements (none where there is no partner)."""
    kind, out, step = exact.kind_of(new.dtype), [], CHUNK * itemsize(new.dtype)
    for start in range(0, len(new.data), step):
        own = new.data[start : start + step]
        base = before and before[start : start + len(own)]
        x, y = exact.numbers(base.ljust(len(own), b"\0"), kind) if base else None, exact.numbers(own, kind)
        if x == y:
            out.append(b"\0")
            continue
        is_small = len(y) <= 4096
        mode = "stored" if is_small else "zstd"
        ways = [exact.planes(y, kind, [mode] * (kind.width // 8), x)] + ([exact.dense(x, y, kind)] if x is not None and is_small else [])
        out.append(min(map(exact.spell, ways[::-1]), key=lambda way: len(way) > 64 + 2 * len(own)))
    return out


class Pack:
    """A pack in the making: `base` and `result` tensors and the entries of the index."""

    def __init__(self) -> None:
        self.base: dict[str, Tensor] = {}
        self.result: dict[str, Tensor] = {}
        self.weighted: dict[str, Tensor] = {}  # the result with `weight`, where that is not 1
        self.weight = "1.0"
        self.rescaled: dict[str, Tensor] = {}  # the result with `rescale` in place of factors, where that is given
        self.rescale: str | None = None
        self.said: dict[str, Said] = {}  # by the base tensor's name
        self.entries: list[Json] = []
        self.files: list[Json] | None = None
        self.contents: dict[str, bytes] = {}  # of the side files
        self.containers: list[Json] | None = None
        self.heads: dict[str, bytes] = {}
        self.extra: Json = {}
        self.minor = 0

    def patched(self, name: str, old: Tensor, terms: Sequence[Added], **options: Any) -> Pack:
        """Add a tensor of kind delta, grown or shrunk; options: dtype, shape, tail, base_name, spoil_tail."""
        dtype, shape = options.get("dtype", old.dtype), options.get("shape", old.shape)
        tail, base_name = options.get("tail", b""), options.get("base_name", name)
        count = numel(shape)
        common = min(count, old.numel)
        new = add_up(old, [Addend(terms)], dtype, shape, tail)
        kind = "delta" if shape == old.shape else "grown" if count > old.numel or tail else "shrunk"
        base: Json = {"digest": old.root}
        base |= {"name": base_name} if base_name != name else {}
        base |= {"dtype": old.dtype} if dtype != old.dtype else {}
        base |= {"shape": list(old.shape)} if shape != old.shape else {}
        entry: Json = {"name": name, "kind": kind, "dtype": dtype, "shape": list(shape), "digest": new.root}
        entry |= {"base": base, "terms": [term.entry(common) for term in terms]}
        if kind == "grown":
            entry["stored"] = stored_blob(tail, ITEMSIZE[dtype], options.get("spoil_tail"))
        if max(old.numel, new.numel) > CHUNK:
            entry["digests"] = Blob(b"".join(old.chunk_digests + new.chunk_digests))
        self.base[base_name], self.result[name] = old, new
        self.said[base_name] = Said(kind, name, new, terms, tail)
        self._weigh(name, add_up(old, [Addend(terms, weight=float(self.weight))], dtype, shape, tail))
        if self.rescale is not None:
            self.rescaled[name] = add_up(old, [Addend([term.with_factor(self.rescale) for term in terms])], dtype, shape, tail)
        for feature in set().union(*(term.features for term in terms)):
            self.requires(feature)
        self.entries.append(entry)
        return self

    def _weigh(self, name: str, tensor: Tensor) -> None:
        if float(self.weight) != 1:
            self.weighted[name] = tensor

    def stored(
        self,
        name: str,
        new: Tensor,
        spoil: Callable[[Json], None] | None = None,
        replaces: tuple[str, Tensor] | None = None,
        over: Tensor | None = None,
    ) -> Pack:
        """Add a stored tensor, and say which tensor of the base it replaces; `over` is one of its name that it does not speak of."""
        return self._held({"stored": stored_blob(new.data, itemsize(new.dtype), spoil)}, name, new, replaces, over)

    def exact(
        self,
        name: str,
        new: Tensor,
        base: tuple[str, Tensor] | None = None,
        spoil: Callable[[Json], None] | None = None,
        **options: Any,
    ) -> Pack:
        """Add an exact tensor, and say its base tensor.

        Options: `through`, states of the tensor between steps; `over`, a tensor of the base of its name that it does not speak of;
        `chunks`, those of the first step; `coded`, what a faulty pack codes in place of `new`; `tables` of each step.
        """
        has_partner = base is not None and is_partner(base[1], new)
        before = as_type(base[1], new.dtype) if base is not None and has_partner else None
        steps: list[Json] = []
        for state in (*options.get("through", ()), options.get("coded", new)):
            chunks = options["chunks"] if "chunks" in options and not steps else encode_step(before, state)
            steps.append({"blob": chunk_blob(chunks, spoil)})
            before = state.data
        for step, first in zip(steps, options.get("tables", ()), strict=False):
            step |= {"tables": first} if first else {}
        self.requires("exact").extra.setdefault("tables", [])
        return self._held({"exact": steps}, name, new, base, options.get("over"), needs_digests=not has_partner)

    def requires(self, feature: str) -> Pack:
        """Name a required feature."""
        self.extra["required"] = sorted({*self.extra.get("required", []), feature})
        return self

    def shares(self, table: bytes) -> Pack:
        """Add a table that exact chunks share."""
        self.requires("exact").extra.setdefault("tables", []).append(Blob(table))
        return self

    def _held(
        self,
        content: Json,
        name: str,
        new: Tensor,
        replaces: tuple[str, Tensor] | None,
        over: Tensor | None,
        needs_digests: bool = True,
    ) -> Pack:
        """Add an entry that says what all elements are."""
        kind = next(iter(content))
        entry: Json = {"name": name, "kind": kind, "dtype": new.dtype, "shape": list(new.shape)}
        entry |= {"digest": new.root} | content
        digests, old_numel = list(new.chunk_digests), 0
        if replaces is not None:
            old_name, old = replaces
            differ = (("name", old_name, name), ("dtype", old.dtype, new.dtype), ("shape", list(old.shape), list(new.shape)))
            entry["base"] = {"digest": old.root} | {key: was for key, was, now in differ if was != now}
            old_numel = old.numel
            digests = [*old.chunk_digests, *digests]
        if max(new.numel, old_numel) > CHUNK and needs_digests:
            entry["digests"] = Blob(b"".join(digests))
        self.result[name] = new
        was = replaces if replaces is not None else (name, over) if over is not None else None
        if was is not None:
            self.base[was[0]], self.said[was[0]] = was[1], Said(kind, name, new)
        can_blend = was is not None and blends(was[1], new)
        addend = Addend([], new, float(self.weight))
        self._weigh(name, add_up(was[1], [addend], new.dtype, new.shape) if was is not None and can_blend else new)
        self.entries.append(entry)
        return self

    def unchanged(self, name: str, old: Tensor, base_name: str | None = None) -> Pack:
        """Add an unchanged tensor."""
        base = {"digest": old.root} | ({"name": base_name} if base_name else {})
        entry = {"name": name, "kind": "unchanged", "dtype": old.dtype, "shape": list(old.shape)}
        self.entries.append(entry | {"digest": old.root, "base": base})
        self.base[base_name or name] = self.result[name] = old
        self.said[base_name or name] = Said("unchanged", name, old)
        self._weigh(name, old)
        return self

    def removed(self, name: str, old: Tensor) -> Pack:
        """Add a removed tensor."""
        base = {"digest": old.root, "dtype": old.dtype, "shape": list(old.shape)}
        self.entries.append({"name": name, "kind": "removed", "base": base})
        self.base[name] = old
        self.said[name] = Said("removed", name, old)
        return self

    def made_of(self, grid: list[list[int]], pieces: list[Json], hidden: Tensor | None = None) -> Pack:
        """Say that the base tensor of the last entry is arranged so; `hidden` is one of the base that has its name."""
        entry = self.entries[-1]
        entry["base"] |= {"grid": grid, "pieces": pieces}
        del self.base[entry["name"]]
        self.base |= {} if hidden is None else {entry["name"]: hidden}
        return self.requires("arranged")

    def alias(self, name: str, of: str, over: Tensor | None = None) -> Pack:
        """Add an alias; `over` is the tensor of its name in the base."""
        if over is not None:
            self.base[name], self.said[name] = over, Said("alias", name, over)
        self.entries.append({"name": name, "kind": "alias", "of": of})
        return self

    def referring(self, name: str, content: bytes, blob: Blob | None = None, to: bytes | None = None) -> Pack:
        """Add a side file that refers to the base's (or, for a fault, to another)."""
        before = BASE_FILES[name] if to is None else to
        self.file(name, content, blob=blob or Blob(zstd_after(before, content)))
        assert self.files is not None
        self.files[-1]["base"] = hashlib.sha256(before).hexdigest()
        return self.requires("files.base")

    def file(self, name: str, content: bytes, inside: bool = True, blob: Blob | None = None) -> Pack:
        """Add a side file."""
        entry: Json = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if inside:
            frame = zstd(content)
            entry["blob"] = blob or Blob(frame if len(frame) < len(content) else content)
        self.contents[name] = content
        self.files = [*(self.files or []), entry]
        return self

    def container(self, name: str, head: bytes, inside: bool = True, blob: Blob | None = None, before: bytes = b"") -> Pack:
        """Add the head of a weight file; `before` is the base's that it refers to."""
        frame = zstd_after(before, head) if before else zstd(head)
        entry: Json = {"name": name, "size": len(head), "sha256": hashlib.sha256(head).hexdigest()}
        entry |= {"blob": blob or Blob(frame if len(frame) < len(head) or before else head)} if inside else {}
        entry |= {"base": hashlib.sha256(before).hexdigest()} if before else {}
        self.heads[name] = head
        self.containers = [*(self.containers or []), entry]
        return self

    def index_base(self) -> Json:
        """The `base` of the index."""
        return {"fingerprint": fingerprint(self.base), "tensors": len(self.base)}

    def build(self, edit: Callable[[Json], None] | None = None, **options: Any) -> bytes:
        """Return the file.

        What follows from something else is worked out after `edit`: root digests, places and hashes of blobs, `base`, `result`, prologue.
        So an edit is the only fault of a pack. An edit that replaces such a value (a `Root`, a `Blob`, `None` in `result`) makes it
        the fault.

        Args:
            edit: Changes the index before what follows from it is worked out.
            options: `place` says where blob number n starts after one that ends at some offset; `late` changes the index thereafter;
                `text` changes the JSON text, `frame` the index as stored, `blobs` the blob region, `fields` overrides prologue
                fields; checksums are made to fit each of them.
        """
        entries = sorted(self.entries, key=lambda entry: entry["name"].encode())
        files = self.files and sorted(self.files, key=lambda file: file["name"].encode())
        index: Json = {"format": "dpk", "required": [], "created_by": "make_vectors 1", "recipe": {}}
        index |= {"base": self.index_base()}
        index |= {"result": {"fingerprint": None, "tensors": None, "bytes": None}}
        index |= {"tensors": copy.deepcopy(entries), "files": copy.deepcopy(files)}
        index |= copy.deepcopy(self.extra)
        if self.containers is not None:
            index["containers"] = sorted(copy.deepcopy(self.containers), key=lambda row: row["name"].encode())
            index["required"] = sorted([*index["required"], "containers"])
        if edit:
            edit(index)
        region = settle(index, options.get("place", lambda n, end: round_up(end)))
        name_base(index, self.index_base())
        if "late" in options:
            options["late"](index)
        raw = dump(index)
        raw = options["text"](raw) if "text" in options else raw
        region = options["blobs"](region) if "blobs" in options else region
        frame = options["frame"](raw) if "frame" in options else zstd(raw)
        return prologue(frame, len(raw), 64 + len(region), self.minor, options.get("fields", {})) + region + frame


def round_up(offset: int) -> int:
    """The next multiple of 8."""
    return -(-offset // 8) * 8


def settle(index: Json, start_of: Callable[[int, int], int]) -> bytes:
    """Put what follows from the rest in the place of each `Root`, each `Blob` and of None in `result`; return the blobs."""
    region, numbers = bytearray(), itertools.count()

    def place(holder: Any, key: str | int) -> None:
        blob = holder.get(key) if isinstance(holder, dict) else holder[key]
        if isinstance(blob, Blob):
            start = start_of(next(numbers), 64 + len(region))
            region.extend(bytes(max(start - 64 - len(region), 0)))
            holder[key] = [start, len(blob.data), blob.hash]
            region[start - 64 :] = blob.data

    rows, size = [], 0
    entries = index["tensors"] if type(index.get("tensors")) is list else []
    for entry in (entry for entry in entries if type(entry) is dict):
        base = entry["base"] if type(entry.get("base")) is dict else {}
        for holder, dtype, shape in (
            (entry, entry.get("dtype"), entry.get("shape")),
            (base, base.get("dtype", entry.get("dtype")), base.get("shape", entry.get("shape"))),
        ):
            if isinstance(holder.get("digest"), Root):
                holder["digest"] = holder["digest"].hex(dtype, shape)
        if entry.get("kind") not in ("removed", "alias") and type(entry.get("shape")) is list:
            rows.append(tuple(entry.get(key, "") for key in ("name", "dtype", "shape", "digest")))
            size += size_of(str(entry.get("dtype")), [int(dim) for dim in entry["shape"]])
        for term in entry.get("terms") or []:
            if type(term) is dict:
                place(term, "blob")
                place(term, "lines")
        place(entry, "stored")
        for step in entry["exact"] if type(entry.get("exact")) is list else []:
            if type(step) is dict:
                place(step, "blob")
        place(entry, "digests")
    for files in (index.get("files"), index.get("containers")):
        for file in files if type(files) is list else []:
            if type(file) is dict:
                place(file, "blob")
    for number in range(len(index["tables"])) if type(index.get("tables")) is list else []:
        place(index["tables"], number)
    region.extend(bytes(-len(region) % 8))
    result = {"fingerprint": fingerprint_of(rows), "tensors": len(rows), "bytes": size}
    if type(index.get("result")) is dict:
        index["result"] |= {key: value for key, value in result.items() if index["result"].get(key, "") is None}
    return bytes(region)


def name_base(index: Json, before: Json) -> None:
    """Give an index whose entries state digests of a whole base the fingerprint of these, unless it states one of its own."""
    entries = index["tensors"] if type(index.get("tensors")) is list else []
    rows = {}
    for entry in (entry for entry in entries if type(entry) is dict):
        base = entry if entry.get("kind") == "unchanged" and "base" not in entry else entry.get("base")
        if type(base) is dict and type(base.get("digest")) is str:
            dtype, shape = (base.get(key, entry.get(key)) for key in ("dtype", "shape"))
            rows[base.get("name", entry.get("name"))] = (base.get("name", entry.get("name")), dtype, shape, base["digest"])
    if index.get("base") == before and len(rows) == before["tensors"] and all(type(row[2]) is list for row in rows.values()):
        index["base"] = {**before, "fingerprint": fingerprint_of(list(rows.values()))}


def dump(index: Any) -> bytes:
    """Canonical JSON."""
    return json.dumps(index, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def prologue(frame: bytes, raw_length: int, offset: int, minor: int, fields: Json) -> bytes:
    """64 bytes."""
    values: Json = {
        **{"magic": b"\x89DPK\r\n\x1a\n", "major": 1, "minor": minor, "flags": 0},
        **{"file_length": offset + len(frame), "index_offset": offset, "index_length": len(frame)},
        **{"index_raw_length": raw_length, "index_hash": xxhash.xxh3_64_intdigest(frame)},
    } | fields
    head = struct.pack("<8sHHIQQQQQ", *list(values.values())[:9])
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head) ^ values.get("spoil", 0))


def fingerprint_of(rows: list[tuple[Any, ...]]) -> str:
    """The fingerprint of a checkpoint, from name, dtype, shape and root digest of each tensor."""
    lines = [
        f"{name}\0{dtype}\0{','.join(map(str, shape))}\0{digest}\n"
        for name, dtype, shape, digest in sorted(rows, key=lambda row: str(row[0]).encode())
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """The fingerprint of a checkpoint."""
    return fingerprint_of([(name, t.dtype, t.shape, t.digest) for name, t in tensors.items()])
