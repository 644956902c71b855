"""Files of checkpoints changed in their structure: headers of safetensors, zip archives of PyTorch with a pickle inside."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from random import Random
from typing import Any

from fuzz.mutators.streams import changed_bytes, changed_number
from fuzz.mutators.values import changed_value

__all__ = ["changed_pickle", "changed_safetensors", "changed_zip"]

_HEADER_WORDS = (
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64", "I64", "I32", "I16", "I8", "U8", "BOOL", "F4", "F6_E2M3", "Q9"),
    *("dtype", "shape", "data_offsets", "__metadata__", "format", "pt"),
)


def changed_safetensors(data: bytes, rng: Random) -> bytes:
    """Change what the header says, and mostly let the length before it fit; else bytes of the file."""
    size = int.from_bytes(data[:8], "little")
    try:
        header: Any = json.loads(data[8 : 8 + size]) if size <= len(data) and rng.random() < 0.9 else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        return changed_bytes(data, rng)
    elements = data[8 + size :]
    way = rng.randrange(8)
    if way == 0:
        elements = changed_bytes(elements, rng)
    elif way <= 2:
        _change_layout(header, rng)
    else:
        header = changed_value(header, rng, (*_HEADER_WORDS, *header))
    if rng.random() < 0.3 and isinstance(header, dict):
        elements = _fit(header, elements)
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return changed_bytes(data, rng)
    text += b" " * (-len(text) % 8) if rng.random() < 0.9 else b"\n"
    length = len(text) if rng.random() < 0.95 else changed_number(len(text), rng) & (1 << 64) - 1
    return struct.pack("<Q", length) + text + elements


def _change_layout(header: dict[str, Any], rng: Random) -> None:
    rows = [row for name, row in header.items() if name != "__metadata__" and isinstance(row, dict)]
    if not rows:
        return
    row = rng.choice(rows)
    key = rng.choice(("shape", "data_offsets", "dtype"))
    if key == "dtype":
        row[key] = rng.choice(_HEADER_WORDS[:17])
    elif isinstance(row.get(key), list) and row[key]:
        at = rng.randrange(len(row[key]))
        row[key][at] = changed_number(row[key][at], rng) if isinstance(row[key][at], int) else row[key][at]


def _fit(header: dict[str, Any], elements: bytes) -> bytes:
    """As many bytes of elements as offsets reach."""
    rows = [row.get("data_offsets") for row in header.values() if isinstance(row, dict)]
    ends = [row[1] for row in rows if isinstance(row, list) and len(row) == 2 and isinstance(row[1], int)]
    end = max(ends, default=0)
    return elements[:end].ljust(end, b"\x3c") if 0 <= end <= 1 << 20 else elements


def changed_zip(data: bytes, rng: Random) -> bytes:
    """Change a member of a zip archive, its name, how it is packed, or the archive as bytes."""
    if rng.random() < 0.15:
        return changed_bytes(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            rows = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError, EOFError):
        return changed_bytes(data, rng)
    if not rows:
        return changed_bytes(data, rng)
    number = rng.randrange(len(rows))
    pickles = [at for at, (name, _) in enumerate(rows) if name.endswith(".pkl")]
    if pickles and rng.random() < 0.7:
        number = rng.choice(pickles)
    name, content = rows[number]
    way = rng.randrange(20)
    if way == 0:
        rows[number] = rng.choice((name + "x", "../" + name, name.upper(), rng.choice(rows)[0], "data.pkl", "a/byteorder")), content
    elif way == 1:
        del rows[number]
    elif way == 2:
        rows.insert(rng.randrange(len(rows) + 1), (name, content))
    elif name.endswith(".pkl"):
        rows[number] = name, changed_pickle(content, rng)
    else:
        rows[number] = name, changed_bytes(content, rng)
    out = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", packing) as archive:
        warnings.simplefilter("ignore")
        for name, content in rows:
            archive.writestr(zipfile.ZipInfo(name), content, packing)
    return out.getvalue()


def changed_pickle(data: bytes, rng: Random) -> bytes:
    """Change operations of a pickle: arguments, order, repetition; or its bytes."""
    try:
        found = list(pickletools.genops(data))
    except Exception:  # whatever pickletools makes of bytes that are none
        return changed_bytes(data, rng)
    starts = [place for _, _, place in found if place is not None]
    pieces = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=False)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(pieces))
        way = rng.randrange(7)
        if way == 0:
            del pieces[at : at + rng.choice((1, 1, 3))]
        elif way == 1:
            pieces.insert(at, rng.choice(pieces))
        elif way == 2:
            other = rng.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif way == 3:
            pieces.insert(at, rng.choice(_OPERATIONS))
        elif way == 4:
            pieces[at] = changed_integer(pieces[at], rng)
        elif way == 5:
            pieces[at:at] = pieces[at : at + rng.choice((2, 5, 20))] * rng.choice((1, 2, 8))
        else:
            pieces[at] = changed_bytes(pieces[at], rng)
        if not pieces:
            break
    return b"".join(pieces)


def changed_integer(operation: bytes, rng: Random) -> bytes:
    """Another integer in the place of one; other operations stay."""
    if operation[:1] in b"KMJ" and len(operation) > 1:
        number = int.from_bytes(operation[1:], "little")
        return b"J" + (changed_number(number, rng) & 0xFFFFFFFF).to_bytes(4, "little")
    if operation[:1] == b"\x8a":
        number = changed_number(int.from_bytes(operation[2:], "little", signed=True), rng)
        body = number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True)
        return b"\x8a" + bytes([len(body)]) + body
    return operation


_OPERATIONS = (
    *(b"(", b")", b"}", b"]", b"t", b"\x85", b"\x86", b"\x87", b"0", b"2", b"N", b"\x88", b"s", b"u", b"a", b"e", b"R", b"b", b"Q", b"."),
    *(b"\x81", b"\x93", b"\x94", b"q\x00", b"h\x00", b"K\x00", b"J\xff\xff\xff\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"X\x00\x00\x00\x00"),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"),
    *(b"\x80\x02", b"\x95" + b"\xff" * 8, b"X\x04\x00\x00\x00cpu\x00", b"ctorch\nbfloat16\n", b"ctorch\nSize\n", b"\x8f", b"\x91", b"G" + bytes(8)),
)
