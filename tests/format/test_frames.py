"""zstd frames that lie."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from deltapack.errors import DeltapackError, FormatError
from deltapack.format import frames
from deltapack.format.frames import compress_frame, decompress_frame, pack_stream, unpack_stream

RAW = b"deltapack " * 100
FRAME = compress_frame(RAW, 1)


def frame(raw: bytes, **options: Any) -> bytes:
    params = zstandard.ZstdCompressionParameters.from_level(1, **options)
    return zstandard.ZstdCompressor(compression_params=params).compress(raw)


def streamed(raw: bytes) -> bytes:
    """A frame that does not state its size."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(raw) + packer.flush()


def skippable(raw: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A50, len(raw)) + raw


@given(st.binary(max_size=300), st.integers(1, 4))
def test_stream_round_trip(raw: bytes, repeats: int) -> None:
    stored = pack_stream(raw * repeats)
    assert len(stored) <= len(raw) * repeats
    assert unpack_stream(stored, len(raw) * repeats) == raw * repeats


@pytest.mark.parametrize("level", [1, 9])
def test_frames_over_the_window_keep_within_it(level: int) -> None:
    raw = bytes(9 << 20)
    packed = compress_frame(raw, level)
    assert zstandard.get_frame_parameters(packed).window_size <= 8 << 20
    assert decompress_frame(packed, len(raw)) == raw


@pytest.mark.parametrize("level", [-5, 1, 3, 9, 16, 19, 22])
@pytest.mark.parametrize("size", [1, 255, 256, 1000, (1 << 16) + 255, (1 << 16) + 256, 1 << 17, (1 << 17) + 1, 1 << 18, (1 << 20) + 1])
def test_frames_of_every_level_keep_the_rules(level: int, size: int) -> None:
    """What a library writes by itself is valid, so every pack written so far is."""
    for raw in (bytes(size), (b"deltapack %d " % size) * (size // 8 + 1)):
        assert decompress_frame(compress_frame(raw[:size], level), size) == raw[:size]


@pytest.mark.parametrize("descriptor", range(256))
def test_every_frame_header_descriptor(descriptor: int) -> None:
    """With the fields that its flags ask for, a descriptor is valid iff it has no dictionary, no bit without meaning, and a size."""
    single, size_flag = descriptor >> 5 & 1, descriptor >> 6
    width = (single, 2, 4, 8)[size_flag]
    content = b"a" * 300 if size_flag else b"a" * 200
    fields = b"" if single else b"\x50"
    fields += bytes((0, 1, 2, 4)[descriptor & 3])
    fields += (len(content) - (256 if size_flag == 1 else 0)).to_bytes(width, "little") if width else b""
    block = (1 | 1 << 1 | len(content) << 3).to_bytes(3, "little") + b"a"
    checksum = xxhash.xxh64_intdigest(content).to_bytes(8, "little")[:4] if descriptor & 4 else b""
    packed = b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + fields + block + checksum
    if width and not descriptor & 0b11011:
        assert decompress_frame(packed, len(content)) == content
    else:
        with pytest.raises(FormatError) as caught:
            decompress_frame(packed, len(content))
        assert caught.value.rule == "R10"


def test_a_block_over_the_window_is_refused_before_the_library_sees_it() -> None:
    """libzstd 1.5.5 decompresses it, 1.5.7 does not."""
    raw = b"abcdefgh" * 375
    single = zstandard.ZstdCompressor(level=1).compress(raw)
    with pytest.raises(FormatError, match="content 3000, window 1024"):
        decompress_frame(single[:4] + b"\x40\0" + single[5:], len(raw))


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"x",
        FRAME[:4],
        FRAME[:-1],
        FRAME + b"x",
        FRAME + FRAME,
        FRAME + skippable(b"a"),
        skippable(b"a") + FRAME,
        skippable(bytes(1000)),
        streamed(RAW),
        frame(RAW + b"x"),
        frame(RAW[:-1]),
        b"\0" + FRAME,
    ],
)
def test_anything_but_one_honest_frame_is_refused(stored: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        decompress_frame(stored, len(RAW))
    assert caught.value.rule == "R10"


@pytest.mark.parametrize("size", [1 << 40, (1 << 64) - 3, 10**9])
def test_bomb_is_refused_before_anything_is_allocated(size: int) -> None:
    bomb = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x01\0\0"
    for raw_length in (1000, len(RAW)):
        with pytest.raises(FormatError, match="another size"):
            decompress_frame(bomb, raw_length)


def test_window_over_8_mib_is_refused() -> None:
    raw = bytes((8 << 20) + 1)
    with pytest.raises(FormatError, match="not allowed"):
        decompress_frame(frame(raw, window_log=24), len(raw))


def test_dictionary_is_refused() -> None:
    samples: list[bytes | bytearray | memoryview] = [bytes([i % 7, i % 11]) * 20 + str(i).encode() for i in range(500)]
    dictionary = zstandard.train_dictionary(1024, samples)
    packed = zstandard.ZstdCompressor(dict_data=dictionary).compress(RAW)
    with pytest.raises(FormatError, match="dictionary"):
        decompress_frame(packed, len(RAW))


def test_empty_content_has_no_frame() -> None:
    assert pack_stream(b"") == unpack_stream(b"", 0) == b""
    with pytest.raises(FormatError):
        decompress_frame(frame(b""), 0)


@given(st.integers(0, len(FRAME) - 1), st.integers(1, 255))
def test_damaged_frames_are_refused_or_have_the_right_size(at: int, flip: int) -> None:
    damaged = bytearray(FRAME)
    damaged[at] ^= flip
    try:
        assert len(decompress_frame(bytes(damaged), len(RAW))) == len(RAW)
    except DeltapackError as error:
        assert error.rule == "R10"


def test_same_bytes_whatever_was_compressed_before_and_beside() -> None:
    cases = [(str(number).encode() * 3000, level) for number in range(20) for level in (1, 9)]
    one_by_one = [compress_frame(*case) for case in cases]
    assert len(set(one_by_one)) > 20
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda case: compress_frame(*case), reversed(cases))) == one_by_one[::-1]


@pytest.mark.parametrize("size", [300, 5000, (1 << 20) + 9, (9 << 20) + 9])
def test_a_frame_that_refers_to_what_stands_before(size: int) -> None:
    """All of what stands before is in reach, also where it and the content are longer than the window of other frames."""
    before = np.random.default_rng(size).bytes(size)
    content = before[size // 2 :] + b"new" + before[: size // 2]
    frame = frames.compress_after(before, content)
    assert len(frame) < 100 + size // 1000
    frames.check_frame_after(frame, len(content))
    assert frames.decompress_after(before, frame, len(content)) == content
    assert frames.compress_after(before, content) == frame
    plain = frames.compress_frame(content, 3)
    assert (size > 8 << 20) == (not plain[4] & 0x20)
    for other, raw in ((frame[:-1], len(content)), (frame + b"x", len(content)), (frame, len(content) + 1), (frame, 0)):
        with pytest.raises(FormatError, match="R10"):
            frames.decompress_after(before, other, raw)
    try:
        found = frames.decompress_after(before[::-1], frame, len(content))
    except FormatError as error:
        assert error.rule == "R10"
    else:
        assert found != content  # whose SHA-256 tells


def test_nothing_before() -> None:
    """An empty file stands before nothing."""
    frame = frames.compress_after(b"", b"abc" * 100)
    assert frames.decompress_after(b"", frame, 300) == b"abc" * 100
