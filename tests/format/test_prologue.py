"""Rules R1 to R3."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltapack.errors import ChecksumError, DeltapackError, FormatError, LimitError, NotAPackError, UnsupportedError
from deltapack.format.digest import hash64
from deltapack.format.prologue import Prologue
from deltapack.limits import DEFAULT_LIMITS

GOOD = Prologue(1064, 64, 1000, 5000, 7)
HERE = Path("x.dpk")


def decode(data: bytes, size: int = 1064) -> Prologue:
    return Prologue.decode(data, size, HERE, DEFAULT_LIMITS)


def sealed(at: int, layout: str, value: int) -> bytes:
    """The good prologue with one field changed and its hash made right."""
    data = bytearray(GOOD.encode()[:56])
    struct.pack_into(layout, data, at, value)
    return bytes(data) + struct.pack("<Q", hash64(bytes(data)))


def test_layout() -> None:
    assert GOOD.encode()[:8] == bytes.fromhex("8944504b0d0a1a0a")
    assert struct.unpack("<HHIQQQQQ", GOOD.encode()[8:56]) == (1, 0, 0, 1064, 64, 1000, 5000, 7)
    assert decode(GOOD.encode()) == GOOD


@pytest.mark.parametrize(("name", "data", "error"), [("x.md", b"# Notes\n" * 9, NotAPackError), ("x.dpk", b"# Notes\n" * 9, FormatError)])
def test_only_what_is_called_a_pack_can_be_a_damaged_one(name: str, data: bytes, error: type[DeltapackError]) -> None:
    with pytest.raises(FormatError, match=r"not a \.dpk pack") as caught:
        Prologue.decode(data, len(data), Path(name), DEFAULT_LIMITS)
    assert type(caught.value) is error
    cut = GOOD.encode()[:40]
    with pytest.raises(FormatError) as caught:
        Prologue.decode(cut, len(cut), Path("renamed.bin"), DEFAULT_LIMITS)
    assert type(caught.value) is FormatError


def test_minor_version_is_ignored() -> None:
    assert decode(sealed(10, "<H", 9)) == GOOD


@pytest.mark.parametrize(
    ("data", "rule", "error", "text"),
    [
        (b"", "R1", FormatError, "not a .dpk pack"),
        (GOOD.encode()[:63], "R1", FormatError, "not a .dpk pack"),
        (b"PK\3\4" + bytes(60), "R1", NotAPackError, "this is a zip archive"),
        (b"\x08" + bytes(7) + b'{"a":1}' + bytes(60), "R1", NotAPackError, "safetensors checkpoint, not a pack.*deltapack compress"),
        (GOOD.encode().replace(b"\r\n", b"\n") + b"\0", "R1", FormatError, "not a .dpk pack"),
        (bytes(64), "R1", FormatError, "interrupted"),
        (GOOD.encode()[:-1] + b"\0", "R1", ChecksumError, "damaged"),
        (sealed(12, "<I", 1), "R1", FormatError, "flags"),
        (sealed(8, "<H", 2), "R2", UnsupportedError, "Update"),
        (sealed(8, "<H", 0), "R2", UnsupportedError, "version"),
        (sealed(16, "<Q", 1065), "R2", FormatError, "cut short"),
        (sealed(16, "<Q", 1063), "R2", FormatError, "after its end"),
        (sealed(16, "<Q", 2**64 - 1), "R2", FormatError, "cut short"),
        (sealed(24, "<Q", 65), "R3", FormatError, "end of the file"),
        (sealed(24, "<Q", 56), "R3", FormatError, "end of the file"),
        (sealed(24, "<Q", 72), "R3", FormatError, "end of the file"),
        (sealed(32, "<Q", 0), "R3", FormatError, "end of the file"),
        (sealed(32, "<Q", 2**64 - 8), "R3", FormatError, "end of the file"),
        (sealed(40, "<Q", 2**64 - 1), "R3", LimitError, "too large"),
        (sealed(40, "<Q", (64 << 20) + 1), "R3", LimitError, "too large"),
    ],
)
def test_broken_prologues(data: bytes, rule: str, error: type[DeltapackError], text: str) -> None:
    with pytest.raises(DeltapackError, match=text) as caught:
        decode(data)
    assert type(caught.value) is error
    assert caught.value.rule == rule
    assert caught.value.path == HERE


@given(st.integers(0, 63), st.integers(1, 255))
def test_every_flipped_byte_is_noticed(at: int, flip: int) -> None:
    data = bytearray(GOOD.encode())
    data[at] ^= flip
    with pytest.raises(FormatError):
        decode(bytes(data))


NUMBERS = struct.unpack("<HHIQQQQQ", GOOD.encode()[8:56])
LIMITS = [(1 << 8 * size) - 1 for size in (2, 2, 4, 8, 8, 8, 8, 8)]


@given(st.data(), st.lists(st.integers(0, 7), max_size=3))
def test_any_sealed_prologue_is_refused_or_in_range(data: st.DataObject, changed: list[int]) -> None:
    numbers = list(NUMBERS)
    for place in changed:
        numbers[place] = data.draw(st.integers(0, 1100) | st.integers(0, LIMITS[place]))
    head = GOOD.encode()[:8] + struct.pack("<HHIQQQQQ", *numbers)
    try:
        found = decode(head + struct.pack("<Q", hash64(head)))
    except DeltapackError as error:
        assert error.rule in ("R1", "R2", "R3")
    else:
        assert found.index_offset + found.index_length == 1064 and found.index_offset >= 64
        assert found.index_raw_length <= DEFAULT_LIMITS.index_bytes
