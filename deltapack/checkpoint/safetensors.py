"""The safetensors file format: a header parser that trusts nothing, and a header writer.

A file is: u64 length of the header, the header (a JSON object from tensor name to dtype, shape and
`data_offsets`), then the bytes of the tensors without holes or overlaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltapack.checkpoint.tensors import FileSource, Layout, ParsedFile, TensorInfo, check_count, check_tensor
from deltapack.dtypes import BY_SAFETENSORS, MAX_RAW_BITS, SAFETENSORS_NAME, DType, raw_type
from deltapack.errors import CheckpointError, LimitError, UnsupportedError
from deltapack.limits import DEFAULT_LIMITS, Limits
from deltapack.sources.reading import Readable

__all__ = ["OWN_METADATA", "header_bytes", "load_json", "parse_head", "parse_safetensors", "says_ours"]

_METADATA = "__metadata__"
_NDIM = 64
"""Dimensions of which a product is taken before the limits are checked."""
OWN_METADATA = "deltapack."
"""What the keys begin with under which files say where they are from; they are never names of tensors."""
_DAMAGED = "The file is damaged or was not written by safetensors."


def parse_safetensors(file: Readable, limits: Limits = DEFAULT_LIMITS) -> ParsedFile:
    """Read the header of a safetensors file.

    Args:
        file: The open file; it becomes part of the result.
        limits: Bounds on the header, names and shapes.

    Raises:
        CheckpointError: The file breaks a rule of the format.
        LimitError: It exceeds `limits`.
        UnsupportedError: An element type is not known.
    """
    if file.size < 8:
        raise CheckpointError("too short for a safetensors file", path=file.path, expected="8 bytes or more", found=file.size)
    prefix = file.read(0, 8)
    length = int.from_bytes(prefix, "little")
    if length > file.size - 8:
        expected = f"at most {file.size - 8} bytes"
        raise CheckpointError("the header is longer than the file", path=file.path, expected=expected, found=length, hint=_DAMAGED)
    if length > limits.header_bytes:
        raise LimitError("the header is too long", path=file.path, expected=f"at most {limits.header_bytes} bytes", found=length)
    rows, metadata = _parse_header(file.read(8, length), file.path, limits)
    _check_tiling(rows, file.path, file.size - 8 - length)
    tensors = [(info, FileSource(file, 8 + length + begin)) for info, begin, _ in rows]
    return ParsedFile(tensors, metadata=metadata, handles=[file])


def parse_head(data: bytes, path: Path, limits: Limits = DEFAULT_LIMITS) -> list[TensorInfo]:
    """Read what stands before the elements in a safetensors file, without the file.

    Args:
        data: The 8 bytes of the length, and the header.
        path: Name of the file, for errors and as `shard` of the tensors.
        limits: Bounds on the header, names and shapes.

    Returns:
        Its tensors in the order in which their elements follow, without holes or overlaps.

    Raises:
        CheckpointError: It breaks a rule of the format.
        LimitError: It exceeds `limits`.
        UnsupportedError: An element type is not known.
    """
    if len(data) > limits.header_bytes + 8:
        raise LimitError("the header is too long", path=path, expected=f"at most {limits.header_bytes} bytes", found=len(data) - 8)
    says = int.from_bytes(data[:8], "little")
    if len(data) < 8 or says != len(data) - 8:
        raise CheckpointError("the header has another length than it says", path=path, expected=says, found=max(0, len(data) - 8))
    rows, _ = _parse_header(data[8:], path, limits)
    _check_tiling(rows, path, max((end for _, _, end in rows), default=0))
    return [info for info, _, _ in rows]


def _parse_header(raw: bytes, path: Path, limits: Limits) -> tuple[list[tuple[TensorInfo, int, int]], dict[str, str]]:
    """Return the tensors of a header with their first and last offset in the data, in their order there, and the metadata."""
    if not raw.startswith(b"{"):
        raise CheckpointError("the header is not a JSON object", path=path, hint=_DAMAGED)
    header = load_json(raw, path)
    metadata = _parse_metadata(header.pop(_METADATA, {}), path)
    check_count(path, len(header), limits)
    widths = _raw_widths(header)
    rows = [_parse_entry(name, entry, widths, path, limits) for name, entry in header.items()]
    return sorted(rows, key=lambda row: (row[1], row[2], row[0].name)), metadata


def header_bytes(tensors: Sequence[Layout], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a file that holds `tensors` back to back, in the given order.

    The result is a multiple of 8 bytes, so that the first tensor is aligned.
    """
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        end = position + tensor.dtype.count(tensor.shape) * tensor.dtype.itemsize
        header[tensor.name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def load_json(raw: bytes, path: Path) -> dict[str, object]:
    """Parse a JSON object strictly: UTF-8, no duplicate keys, no NaN.

    Raises:
        CheckpointError: `raw` is anything else.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"the JSON key {twice!r} appears twice", path=path, hint="The file is damaged.")
        return result

    def no_constant(text: str) -> object:
        raise ValueError(f"{text} is not JSON")

    try:
        document = json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not valid JSON: {error}", path=path) from error
    if not isinstance(document, dict):
        raise CheckpointError("the JSON is not an object", path=path, found=type(document).__name__)
    return document


def _parse_metadata(value: object, path: Path) -> dict[str, str]:
    if value is None:  # as safetensors reads it
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{_METADATA} is not an object of strings", path=path, hint=_DAMAGED)
    try:
        "".join((*value, *value.values())).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{_METADATA} is not valid Unicode", path=path, hint=_DAMAGED) from error
    return value


def _raw_widths(header: Mapping[str, object]) -> dict[str, int]:
    """Return the bits of an element of each type that has no row of its own, as the first tensor with elements shows."""
    widths: dict[str, int] = {}
    for entry in header.values():
        match entry:
            case {"dtype": str(name), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if name not in BY_SAFETENSORS:
                known = name not in widths and SAFETENSORS_NAME.fullmatch(name) and _are_sizes(shape) and len(shape) <= _NDIM
                bits, rest = divmod(8 * (end - begin), math.prod(shape)) if known and 0 not in shape else (0, 1)
                if rest == 0 and 0 < bits <= MAX_RAW_BITS:
                    widths[name] = bits
    return widths


def _dtype(name: object, shape: Sequence[int], widths: Mapping[str, int]) -> DType | None:
    """Return a type by its name in the header; none where no bytes could be told apart."""
    if not isinstance(name, str):
        return None
    if name in BY_SAFETENSORS:
        return BY_SAFETENSORS[name]
    if 0 in shape:  # nothing says how wide they would be
        return raw_type(8, name) if SAFETENSORS_NAME.fullmatch(name) else None
    return raw_type(widths[name], name) if name in widths else None


def _parse_entry(name: str, entry: object, widths: Mapping[str, int], path: Path, limits: Limits) -> tuple[TensorInfo, int, int]:
    """Return a tensor with its first and last offset in the data."""

    def wrong(what: str, expected: object, found: object) -> CheckpointError:
        return CheckpointError(what, path=path, tensor=name, expected=expected, found=found, hint=_DAMAGED)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise wrong("the header entry is wrong", "dtype, shape, data_offsets", found)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape):
        raise wrong("the shape is wrong", "integers >= 0", shape)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong("the data offsets are wrong", "[begin, end] with begin <= end", offsets)
    check_tensor(path, name, shape, limits)
    dtype = _dtype(entry["dtype"], shape, widths)
    if dtype is None:
        expected = f"one of {', '.join(sorted(BY_SAFETENSORS))}, or elements of a whole number of bits"
        raise UnsupportedError("unknown element type", path=path, tensor=name, expected=expected, found=entry["dtype"])
    if not dtype.fits(shape):
        raise wrong("the elements do not fill whole bytes", f"a multiple of 8 bits, {dtype.raw_bits} an element", shape)
    info = TensorInfo(name, dtype, tuple(shape), path.name)
    if offsets[1] - offsets[0] != info.nbytes:
        raise wrong("the data offsets do not fit the shape", f"{info.nbytes} bytes for {shape}", offsets[1] - offsets[0])
    return info, offsets[0], offsets[1]


def _are_sizes(value: object) -> bool:
    """Whether `value` is a list of integers >= 0; `true` is not 1."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_tiling(rows: Sequence[tuple[TensorInfo, int, int]], path: Path, data_size: int) -> None:
    position = 0
    for info, begin, end in rows:
        if begin != position:
            what = "a hole before the tensor's data" if begin > position else "two tensors share bytes"
            raise CheckpointError(what, path=path, tensor=info.name, expected=f"data from {position}", found=begin, hint=_DAMAGED)
        position = end
    if position != data_size:
        cut = "The file is cut: download or copy it again." if position > data_size else _DAMAGED
        raise CheckpointError(
            "the file size does not fit the header",
            path=path,
            expected=f"{position} bytes of data",
            found=data_size,
            hint=cut,
        )


def says_ours(header: bytes) -> bool:
    """Whether the header of a safetensors file says that this program restored or merged it."""
    try:
        document = json.loads(header)
    except (ValueError, RecursionError):
        return False
    strings = document.get("__metadata__") if isinstance(document, dict) else None
    return isinstance(strings, dict) and any(key.startswith(OWN_METADATA) for key in strings)
