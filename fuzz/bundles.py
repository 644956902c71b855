"""An input: named files in one string of bytes, so that engines which know only bytes can keep and change inputs of several files."""

from __future__ import annotations

import struct
from collections.abc import Mapping

__all__ = ["Bundle", "decode", "encode"]

Bundle = dict[str, bytes]
_MAGIC = b"DPF1"
_LENGTHS = struct.Struct("<HI")


def encode(bundle: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a bundle.

    >>> decode(encode({"a/b": b"x"}))
    {'a/b': b'x'}
    """
    rows = [(name.encode("utf-8", "surrogatepass"), content) for name, content in bundle.items()]
    return _MAGIC + b"".join(_LENGTHS.pack(len(name), len(content)) + name + content for name, content in rows)


def decode(data: bytes) -> Bundle | None:
    """Invert `encode`; none where these are no bytes of a bundle, which an engine without a mutator of ours makes."""
    if data[:4] != _MAGIC:
        return None
    at, bundle = 4, Bundle()
    while at < len(data):
        if at + _LENGTHS.size > len(data):
            return None
        name_bytes, content_bytes = _LENGTHS.unpack_from(data, at)
        start = at + _LENGTHS.size
        at = start + name_bytes + content_bytes
        if at > len(data):
            return None
        name = data[start : start + name_bytes].decode("utf-8", "surrogatepass")
        bundle[name] = data[start + name_bytes : at]
    return bundle
