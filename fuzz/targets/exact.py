"""Chunks of exact tensors: both loops against the specification's decoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from deltapack.codecs.exact import decode_exact_chunk, encode_exact_chunk
from deltapack.codecs.exact_tables import SharedTables
from deltapack.dtypes import BY_NAME
from deltapack.kernels import reference as numpy_loops
from fuzz.bundles import Bundle
from fuzz.mutators.streams import changed_bytes, changed_frame, changed_number
from fuzz.protocol import Finding, Scratch, Target, modules
from fuzz.spec import ROOT, exact_decoder
from fuzz.targets.vectors import agree, by_spec, compiled, loops

__all__ = ["EXACT"]

_MOST = 1 << 14
"""Elements of an input: the specification's decoder takes a microsecond for each bit of one."""


def _runs(rows: list[list[Any]]) -> bytes:
    return b"".join(bytes.fromhex(word) * times for word, times in rows)


def _bundle(chunk: bytes, base: bytes | None, dtype: str, length: int, tables: Sequence[bytes]) -> Bundle:
    case = {"dtype": dtype, "length": length, "base": base is not None, "tables": len(tables)}
    bundle = {"chunk": chunk, "case.json": json.dumps(case).encode()}
    bundle |= {} if base is None else {"base": base}
    return bundle | {f"table-{number}": table for number, table in enumerate(tables)}


def seeds(folder: Path) -> Sequence[Bundle]:
    """The chunks of the specification's vectors, valid and invalid; and some of every type that the encoder makes."""
    document = json.loads((ROOT / "tests" / "vectors" / "exact.json").read_text("utf-8"))
    found = []
    for row in (*document["valid"].values(), *document["invalid"].values()):
        if row["length"] <= _MOST:
            base = None if row["base"] is None else _runs(row["base"])
            found.append(_bundle(bytes.fromhex(row["chunk"]), base, row["dtype"], row["length"], list(map(bytes.fromhex, row["tables"]))))
    rng = np.random.default_rng(0)
    for name, dtype in BY_NAME.items():
        for changes in (1, 40, 700, 1500):
            before = rng.normal(0, 1, 1500).astype(np.float32).view(np.uint8)[: 1500 * dtype.itemsize]
            before = np.resize(before, 1500 * dtype.itemsize).view(dtype.storage).copy()
            tuned, where = before.copy(), rng.choice(1500, changes, replace=False)
            words = tuned.view(f"u{dtype.itemsize}")
            words[where] += rng.integers(0, 3, changes).astype(words.dtype) - 1
            found.append(_bundle(encode_exact_chunk(before, tuned, dtype), before.tobytes(), name, 1500, ()))
            if changes == 40:
                found.append(_bundle(encode_exact_chunk(None, tuned, dtype), None, name, 1500, ()))
    return found


def change(bundle: Bundle, rng: Random) -> Bundle:
    """Change the chunk, mostly: as bytes, its numbers, or a stream in it; or its base, a table, type and length."""
    new = dict(bundle)
    tables = [name for name in bundle if name.startswith("table-")]
    way = rng.randrange(20)
    if way == 0:
        case = json.loads(bundle["case.json"])
        case["dtype"] = rng.choice(list(BY_NAME))
        case["length"] = min(max(0, changed_number(case["length"], rng)), _MOST) if rng.random() < 0.5 else case["length"]
        new["case.json"] = json.dumps(case).encode()
    elif way == 1 and "base" in bundle:
        new["base"] = changed_bytes(bundle["base"], rng)
    elif way <= 3 and tables:
        name = rng.choice(tables)
        new[name] = _changed_stream(bundle[name], 0, rng)
    elif way <= 9:
        new["chunk"] = _changed_stream(bundle["chunk"], 1, rng)
    elif way == 10:
        new["chunk"] = _changed_varint(bundle["chunk"], rng)
    else:
        new["chunk"] = changed_bytes(bundle["chunk"], rng)
    return new


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            break
    return value, at


def _spelt(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _changed_stream(data: bytes, start: int, rng: Random) -> bytes:
    """Change what a stream holds that may begin here (the table of a dense chunk does), and the lengths before it with it."""
    length, at = _varint(data, start)
    stored_length, begin = _varint(data, at)
    end = begin + stored_length
    if not 0 < stored_length <= length <= 1 << 17 or end > len(data):
        return changed_bytes(data, rng)
    stored = data[begin:end]
    stored = changed_frame(stored, rng) if stored_length < length else changed_bytes(stored, rng)
    if stored_length == length:
        length = len(stored)
    return data[:start] + _spelt(length) + _spelt(len(stored)) + stored + data[end:]


def _changed_varint(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(min(len(data), 64)) if data else 0
    value, end = _varint(data, at)
    return data[:at] + _spelt(max(0, changed_number(value, rng))) + data[end:]


def _decoded(*args: Any) -> bytes:
    return decode_exact_chunk(*args).tobytes()


def check(scratch: Scratch) -> None:
    """numpy, numba and the specification refuse a chunk alike, or give the same elements."""
    case = json.loads((scratch.inputs / "case.json").read_bytes())
    chunk = (scratch.inputs / "chunk").read_bytes()
    dtype, length = BY_NAME[case["dtype"]], case["length"]
    tables = [(scratch.inputs / f"table-{number}").read_bytes() for number in range(case["tables"])]
    base = None
    if case["base"]:
        own = (scratch.inputs / "base").read_bytes()
        base = (own * (length * dtype.itemsize // max(1, len(own)) + 1) if own else bytes(length * dtype.itemsize))[
            : length * dtype.itemsize
        ]
    elements = None if base is None else np.frombuffer(base, dtype.storage)
    results = []
    for name, module in (("numpy", numpy_loops), ("numba", compiled())):
        with loops(module):
            shared = SharedTables(tuple(tables))
            results.append(
                scratch.attempt(name, lambda shared=shared: decode_exact_chunk(chunk, elements, dtype, length, shared).tobytes())
            )
    (one, first), (two, second) = results
    if one != two or (one and first != second):
        raise Finding(f"numpy and numba differ: {one} {two}\n{first!r:.200}\n{second!r:.200}")
    said, found = by_spec(lambda: exact_decoder().decode_exact(chunk, base, dtype.name, dtype.itemsize, length, tables))
    agree("exact", one, first, said, found)
    if one and said == "done" and first != found:
        raise Finding("other elements than the specification's")
    form = chunk[0] if chunk else "none"
    scratch.note(f"form {form}: {'done' if one else 'refused'}")


EXACT = Target(
    "codec-exact",
    "chunks of exact tensors: dense, shared tables, sparse, planes",
    seeds,
    change,
    check,
    modules("codecs", "exact_bytes exact_dense exact_planes exact_table exact_tables")
    + modules("kernels.reference", "exact_model exact_rans exact_symbols"),
    "numpy: done",
)
