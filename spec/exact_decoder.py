"""Decoder of exact chunks: codecs/exact.md as a program, number by number.

It shares no code with deltapack and prefers clarity to speed, as reference_decoder.py does, whose checks of zstd frames it uses and
which calls it for the chunks of entries of kind `exact`. Vectors of single chunks are in tests/vectors/exact.json.
"""

from __future__ import annotations

from typing import NamedTuple

from reference_decoder import need, unzstd

__all__ = ["decode_exact"]

TILE, BLOCK = 65_536, 128
LEAST_STATE = 1 << 15
MAX_TABLE, MAX_RAW_BITS = 1 << 15, 62
EQUAL, PLANES, DENSE, SPARSE, SHARED = range(5)
LANES = (1, 4, 8, 32)


# ---------------------------------------------------------------------------------------------------------------------
# 1. Numbers
# ---------------------------------------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """A row of the table of section 1; a step shift of -1 stands for none."""

    width: int
    signed: bool
    shift: int
    mask: int
    head: int
    step_shift: int = -1
    far: bool = False


FLOATS = {
    "f64": Numbers(64, True, 52, 255, 1),
    "f32": Numbers(32, True, 23, 255, 1, 17, True),
    "c64": Numbers(32, True, 23, 255, 1, 17, True),
    "bf16": Numbers(16, True, 7, 255, 2, 1, True),
    "f16": Numbers(16, True, 10, 31, 2, 4, True),
    "f8_e4m3fn": Numbers(8, True, 3, 15, 7),
    "f8_e5m2": Numbers(8, True, 2, 31, 7),
}
OTHERS = {
    8: Numbers(64, False, 0, 0, 1),
    4: Numbers(32, False, 0, 0, 1),
    2: Numbers(16, False, 0, 0, 2),
    1: Numbers(8, False, 4, 15, 7),
}
BYTES = Numbers(8, False, 0, 0, 7)  # of a plane


def context_byte(number: int, kind: Numbers) -> int:
    """What the context follows from."""
    return number >> kind.shift & kind.mask


def ordinal(number: int, kind: Numbers) -> int:
    """The ordinal of a number, and the number of an ordinal."""
    half = 1 << kind.width - 1
    return number ^ (half - 1) if kind.signed and number >= half else number


def top_symbol(kind: Numbers) -> int:
    """The largest symbol of a difference."""
    return 2 * ((kind.width - 1 - kind.head << kind.head) + (1 << kind.head)) - 1


# ---------------------------------------------------------------------------------------------------------------------
# 2. Bytes of a chunk
# ---------------------------------------------------------------------------------------------------------------------


class Reader:
    """The bytes of a chunk, from front to back."""

    def __init__(self, data: bytes) -> None:
        """Begin at the front."""
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """So many bytes."""
        need(self.at + count <= len(self.data), "R9", "the chunk is cut")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        """A u8."""
        return self.take(1)[0]

    def words(self, count: int, size: int) -> list[int]:
        """So many little-endian integers of so many bytes."""
        raw = self.take(count * size)
        return [int.from_bytes(raw[at : at + size], "little") for at in range(0, len(raw), size)]

    def varint(self, most: int) -> int:
        """A varint."""
        value, digits, digit = 0, 0, 128
        while digit >= 128:
            need(digits < 10, "R9", "a varint has more than ten bytes")
            digit = self.byte()
            value |= (digit & 127) << 7 * digits
            digits += 1
        need(digit or digits == 1, "R9", "a varint is longer than it need be")
        need(value <= most, "R9", f"a varint is {value}, over {most}")
        return value

    def stream(self, least: int, most: int) -> bytes:
        """A stream."""
        length = self.varint(most)
        need(length >= least, "R9", "a stream is too short")
        stored = self.take(self.varint(length))
        return stored if len(stored) == length else unzstd(stored, length)

    def end(self) -> None:
        """Nothing is left."""
        need(self.at == len(self.data), "R9", "bytes are left over")


class Given(NamedTuple):
    """What a chunk is decoded with: its numbers' kind, and the shared tables, the first being number 0."""

    kind: Numbers
    tables: list[bytes]


def decode_exact(data: bytes, base: bytes | None, dtype: str, itemsize: int, length: int, tables: list[bytes]) -> bytes:
    """The elements of a chunk, from those of the base at the same places, if there are any; all as little-endian bytes."""
    kind, reader = FLOATS.get(dtype) or OTHERS[itemsize], Reader(data)
    size = kind.width // 8
    before = None if base is None else [int.from_bytes(base[at : at + size], "little") for at in range(0, len(base), size)]
    count = length * itemsize // size
    result = decode_form(reader, before, count, Given(kind, tables), (EQUAL, PLANES, DENSE, SPARSE, SHARED)) if count else []
    reader.end()
    return b"".join(number.to_bytes(size, "little") for number in result)


def decode_form(reader: Reader, base: list[int] | None, count: int, given: Given, forms: tuple[int, ...]) -> list[int]:
    """Numbers in one of these forms."""
    form = reader.byte()
    need(form in forms, "R9", f"form {form}")
    if form == PLANES:
        return decode_planes(reader, base, count, given.kind)
    need(base is not None, "R9", "there is no base")
    assert base is not None
    if form == EQUAL:
        return base
    if form == SPARSE:
        return decode_sparse(reader, base, given)
    table = shared_table(reader, given) if form == SHARED else read_table(reader.stream(1, MAX_TABLE), given.kind)
    return decode_dense(reader, base, table, given.kind)


# ---------------------------------------------------------------------------------------------------------------------
# 3. dense
# ---------------------------------------------------------------------------------------------------------------------


def shared_table(reader: Reader, given: Given) -> Table:
    """The shared table that a chunk names, with the lanes that it names."""
    number, lanes = divmod(reader.varint((1 << 64) - 1), 4)
    need(number < len(given.tables), "R9", f"there is no shared table {number}")
    blob = Reader(given.tables[number])
    raw = blob.stream(1, MAX_TABLE)
    blob.end()
    return read_table(raw, given.kind)._replace(lanes=LANES[lanes])


def decode_dense(reader: Reader, base: list[int], table: Table, kind: Numbers) -> list[int]:
    """As many numbers as the base has."""
    blocks = -(-len(base) // BLOCK)
    classes = reader.stream(blocks, blocks) if len(table.starts) == 2 else bytes(blocks)
    need(max(classes) <= 1, "R9", "no such class")
    contexts = [context_of(table, classes[i // BLOCK], context_byte(x, kind)) for i, x in enumerate(base)]
    symbols, tiles = decode_tiles(reader, contexts, table, has_raw=True)
    result = []
    for start, (raw, bits) in zip(range(0, len(base), TILE), tiles, strict=True):
        at = 0
        for i in range(start, min(start + TILE, len(base))):
            steps = table.steps[classes[i // BLOCK]]
            p = base[i] if steps is None else (base[i] + steps[base[i] >> kind.step_shift & 63]) % (1 << kind.width)
            width = raw_width(symbols[i], table, kind)
            result.append(number_of(p, symbols[i], raw >> at & (1 << width) - 1, table, kind))
            at += width
        need(at == bits, "R9", "raw bits are left over or missing")
        need(raw >> bits == 0, "R9", "unused bits are set")
    return result


def context_of(table: Table, class_number: int, byte: int) -> int:
    """The context of a class and a context byte."""
    before = len(table.starts[0]) if class_number == 1 else 0
    return before + sum(start <= byte for start in table.starts[class_number]) - 1


def raw_width(symbol: int, table: Table, kind: Numbers) -> int:
    """How many raw bits a symbol has."""
    if table.far is not None and symbol >= 128:
        return kind.shift
    return max(0, (symbol + 1 >> 1 >> kind.head) - 1)


def number_of(p: int, symbol: int, raw: int, table: Table, kind: Numbers) -> int:
    """The number that follows from what was predicted, a symbol and its raw bits."""
    half = 1 << kind.width - 1
    if table.far is not None and symbol >= 128:
        return (0 if p >= half else half) + (table.far + symbol - 128 << kind.shift) + raw
    c, width = symbol + 1 >> 1, raw_width(symbol, table, kind)
    one = 1 << kind.head
    magnitude = c if width == 0 else ((one + c % one) << width) + raw
    negative = (symbol % 2 == 1) != (kind.signed and p >= half)
    return ordinal((ordinal(p, kind) + (-magnitude if negative else magnitude)) % (1 << kind.width), kind)


# ---------------------------------------------------------------------------------------------------------------------
# 4. Table
# ---------------------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A table; `far` is E, `starts` and `steps` stand for each class, `frequencies` for each context and symbol."""

    precision: int
    lanes: int
    far: int | None
    starts: list[list[int]]
    steps: list[list[int] | None]
    frequencies: list[dict[int, int]]


def read_table(raw: bytes, kind: Numbers) -> Table:
    """A table of numbers of a kind."""
    reader = Reader(raw)
    precision, lanes, flags = reader.byte(), reader.byte(), reader.byte()
    need(precision in (10, 11, 12), "R9", f"precision {precision}")
    need(lanes in LANES, "R9", f"{lanes} lanes")
    need(flags < 4, "R9", f"flags {flags}")
    need(not flags & 2 or kind.far, "R9", "far symbols")
    far = reader.byte() if flags & 2 else None
    need(far is None or far <= kind.mask, "R9", f"far from exponent {far} on")
    table = Table(precision, lanes, far, [], [], [])
    for _ in range(1 + flags % 2):
        head = reader.byte()
        need(1 <= head % 128 <= 16, "R9", f"{head % 128} ranges")
        need(head < 128 or kind.step_shift >= 0, "R9", "a staircase")
        table.steps.append(read_steps(reader, kind) if head >= 128 else None)
        ranges = [tuple(reader.take(3)) for _ in range(head % 128)]
        table.starts.append([start for start, _, _ in ranges])
        check_starts(table.starts[-1], kind)
        for _, first, last in ranges:
            table.frequencies.append(read_frequencies(reader, first, last, table, kind))
    reader.end()
    return table


def read_steps(reader: Reader, kind: Numbers) -> list[int]:
    """A staircase."""
    steps = [0]
    for _ in range(64):
        steps.append((steps[-1] + reader.varint((1 << kind.width) - 1)) % (1 << kind.width))
    return steps[1:]


def check_starts(starts: list[int], kind: Numbers) -> None:
    """Where ranges may start."""
    need(starts[0] == 0, "R9", "the first range does not start at 0")
    need(starts == sorted(set(starts)), "R9", "ranges do not increase")
    need(starts[-1] <= kind.mask, "R9", "a range above the mask")


def read_frequencies(reader: Reader, first: int, last: int, table: Table, kind: Numbers) -> dict[int, int]:
    """The frequencies of a range."""
    need(first <= last, "R9", "the last symbol is before the first")
    found = {symbol: reader.varint(1 << table.precision) for symbol in range(first, last + 1)}
    need(found[first] and found[last], "R9", "the first or the last symbol does not occur")
    for symbol in range(first, last + 1):
        is_far = table.far is not None and 128 <= symbol <= 128 + min(127, kind.mask - table.far)
        need(found[symbol] == 0 or is_far or symbol <= top_symbol(kind), "R9", f"there is no symbol {symbol}")
    need(sum(found.values()) == 1 << table.precision, "R9", "frequencies have another sum")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# 5. Tiles
# ---------------------------------------------------------------------------------------------------------------------


def decode_tiles(reader: Reader, contexts: list[int], table: Table, has_raw: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """The symbols of all tiles; and of each tile the raw bits as one number, and how many there are."""
    lengths = [min(TILE, len(contexts) - start) for start in range(0, len(contexts), TILE)]
    sizes = [(reader.varint(length), reader.varint(MAX_RAW_BITS * length) if has_raw else 0) for length in lengths]
    states = [reader.words(table.lanes, 4) for _ in lengths]
    need(all(LEAST_STATE <= z < LEAST_STATE << 16 for lane in states for z in lane), "R9", "a state is out of range")
    words = [reader.words(count, 2) for count, _ in sizes]
    tiles = [(int.from_bytes(reader.take(-(-bits // 8)), "little"), bits) for _, bits in sizes]
    slots = [slots_of(row) for row in table.frequencies]
    symbols: list[int] = []
    for tile, own in enumerate(words):
        symbols += decode_tile(contexts[tile * TILE : (tile + 1) * TILE], slots, table.precision, states[tile], own)
    return symbols, tiles


def slots_of(frequencies: dict[int, int]) -> list[tuple[int, int, int]]:
    """For each slot its symbol, the symbol's frequency, and the slot less the symbol's cum."""
    return [(symbol, count, place) for symbol, count in frequencies.items() for place in range(count)]


def decode_tile(
    contexts: list[int], slots: list[list[tuple[int, int, int]]], precision: int, states: list[int], words: list[int]
) -> list[int]:
    """The symbols of a tile."""
    symbols, at = [], 0
    for i, context in enumerate(contexts):
        z = states[i % len(states)]
        symbol, frequency, place = slots[context][z % (1 << precision)]
        z = frequency * (z >> precision) + place
        if z < LEAST_STATE:
            need(at < len(words), "R9", "words are missing")
            z = (z << 16) + words[at]
            at += 1
        states[i % len(states)] = z
        symbols.append(symbol)
    need(at == len(words), "R9", "words are left over")
    need(set(states) == {LEAST_STATE}, "R9", "states do not end at 2^15")
    return symbols


# ---------------------------------------------------------------------------------------------------------------------
# 6. planes
# ---------------------------------------------------------------------------------------------------------------------


def decode_planes(reader: Reader, base: list[int] | None, count: int, kind: Numbers) -> list[int]:
    """Numbers alone, or added to those of the base."""
    planes_of = reader.byte()
    need(planes_of == 0 or (planes_of == 1 and base is not None), "R9", f"planes of kind {planes_of}")
    planes = [decode_plane(reader, count, 4) for _ in range(kind.width // 8)]
    numbers = [sum(byte << 8 * place for place, byte in enumerate(column)) for column in zip(*planes, strict=True)]
    if planes_of == 1 and base is not None:
        return [(x + v) % (1 << kind.width) for x, v in zip(base, numbers, strict=True)]
    return [(v >> 1) + (v % 2 << kind.width - 1) for v in numbers] if kind.signed else numbers


def decode_plane(reader: Reader, count: int, last_mode: int) -> bytes:
    """A plane, or a tile of one."""
    mode = reader.byte()
    need(mode <= last_mode, "R9", f"mode {mode}")
    if mode == 4:
        return b"".join(decode_plane(reader, min(TILE, count - start), 3) for start in range(0, count, TILE))
    if mode == 0:
        return reader.take(count)
    if mode == 1:
        return reader.take(1) * count
    if mode == 3:
        return unzstd(reader.take(reader.varint(2 * count + 64)), count)
    table = read_table(reader.stream(1, MAX_TABLE), BYTES)
    need(len(table.starts) == 1, "R9", "classes in a plane")
    return bytes(decode_tiles(reader, [0] * count, table, has_raw=False)[0])


# ---------------------------------------------------------------------------------------------------------------------
# 7. sparse
# ---------------------------------------------------------------------------------------------------------------------


def decode_sparse(reader: Reader, base: list[int], given: Given) -> list[int]:
    """As many numbers as the base has."""
    shift = reader.byte()
    need(1 <= shift <= 15, "R9", f"shift {shift}")
    count = reader.varint(len(base))
    need(count >= 1, "R9", "no number is given anew")
    places = read_gaps(reader, shift, count, len(base))
    anew = decode_form(reader, [base[place] for place in places], count, given, (PLANES, DENSE, SHARED))
    result = list(base)
    for place, number in zip(places, anew, strict=True):
        result[place] = number
    return result


def read_gaps(reader: Reader, shift: int, count: int, length: int) -> list[int]:
    """Section `gaps` of index.md, with one tile: positions in the chunk."""
    low_bytes, most = -(-count * shift // 8), count + (length >> shift)
    size = reader.varint(low_bytes + -(-most // 8))
    need(size >= low_bytes + -(-count // 8), "R9", "the gaps are too short")
    raw = reader.take(size)
    low, unary = int.from_bytes(raw[:low_bytes], "little"), int.from_bytes(raw[low_bytes:], "little")
    need(low >> count * shift == 0, "R9", "unused bits of the gaps are set")
    need(raw[-1] != 0, "R9", "unused bytes of the gaps")
    need(unary.bit_count() == count, "R9", "another number of gaps")
    places, cursor, at = [], 0, 0
    for number in range(count):
        zeros = (unary >> at & -(unary >> at)).bit_length() - 1
        cursor += (zeros << shift) + (low >> number * shift & (1 << shift) - 1)
        places.append(cursor)
        cursor, at = cursor + 1, at + zeros + 1
    need(cursor <= length, "R9", "a position outside the chunk")
    return places
