"""Pickles as data: what a pickle says, with nothing imported, called or built.

A pickle is a program that names classes and calls them. Here each name stays a `Symbol`, each call a `Made` that tells what would have been
called with what; who reads the result compares symbols with those that it knows. Containers are lists of what a pickle put into them, so
that nothing of it is hashed or compared. All that a pickle can cost is an object for each of its instructions, whose number is bounded.
"""

from __future__ import annotations

import contextlib
import gc
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from deltapack.checkpoint.pickle_stack import MARK, BadPickleError, PickleReader
from deltapack.checkpoint.pickle_values import Made, Pairs, Reference, Symbol
from deltapack.errors import CheckpointError, LimitError

__all__ = ["Scanned", "read_pickle", "scan_pickle"]

_PLAIN = (str, bytes, int, float, Symbol, type(None))
_LONG = 16
"""Bytes of an integer; the first one of an old file of torch has ten."""
_MOST_STEPS = 1 << 25
"""Instructions of a pickle; a checkpoint of 400,000 pieces has about as many."""
_MOST_CONTAINERS = 1 << 23
"""Lists and dicts, each an instruction of one byte: with all of them a reader takes less than a gigabyte. A piece has fewer than ten."""


class Scanned(NamedTuple):
    """A pickle: its document, what it calls things outside of it by (plain values, or tuples of them), and where it ends."""

    document: object
    references: list[object]
    end: int


def read_pickle(data: bytes, path: Path) -> object:
    """Return what a pickle says: None, bool, int, float, str, bytes, list, tuple, `Pairs`, `Symbol`, `Made` or `Reference`.

    Args:
        data: The pickle, of protocol 2 to 5.
        path: The file that it is from, for errors.

    Raises:
        CheckpointError: It is cut or damaged, or has an instruction that no pickler writes for data.
        LimitError: It has too many instructions, or makes too many lists and dicts.
    """
    return _run(PickleReader(data), path)


def scan_pickle(data: bytes, start: int, path: Path) -> Scanned:
    """Read a pickle that begins at `start` of some data, and that another unpickler may read. Raises as `read_pickle`."""
    reader = PickleReader(data, start)
    return Scanned(_run(reader, path), reader.references, reader.at)


def _run(reader: PickleReader, path: Path) -> object:
    """Return the document of a pickle. Raises as `read_pickle`."""
    try:
        with _collector_paused():
            for _ in range(_MOST_STEPS):
                step = _STEPS.get(reader.byte())
                if step is None:
                    raise BadPickleError("an unknown instruction")
                if step is _stop:
                    return reader.pop()
                step(reader)
                if reader.containers > _MOST_CONTAINERS:
                    raise LimitError("the pickle holds too many lists and dicts", path=path, expected=f"at most {_MOST_CONTAINERS}")
    except (BadPickleError, IndexError, struct.error, UnicodeDecodeError) as error:
        hint = "It is cut or damaged."
        raise CheckpointError("not a readable pickle", path=path, found=f"{error} at byte {reader.at}", hint=hint) from error
    raise LimitError("the pickle has too many instructions", path=path, expected=f"at most {_MOST_STEPS}")


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python from looking for garbage: nothing here becomes any, and looking through millions of objects takes most of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _append(reader: PickleReader, values: list[object]) -> None:
    target = reader.stack[-1]
    if not isinstance(target, list):
        raise BadPickleError("no list")
    target.extend(values)


def _set(reader: PickleReader, values: list[object]) -> None:
    target = reader.stack[-1]
    if isinstance(target, Made):  # an OrderedDict and its kin: what is in them is of no interest here
        return
    if not isinstance(target, Pairs) or len(values) % 2:
        raise BadPickleError("no dict")
    target.items.extend(zip(values[::2], values[1::2], strict=True))


def _two(reader: PickleReader) -> list[object]:
    second, first = reader.pop(), reader.pop()
    return [first, second]


def _build(reader: PickleReader) -> None:
    state = reader.pop()
    made = reader.stack[-1]
    if not isinstance(made, Made) or made.state is not None:
        raise BadPickleError("no object")
    made.state = state


def _make(reader: PickleReader) -> None:
    what, args = _two(reader)
    reader.push(Made(what, args))


def _make_with_names(reader: PickleReader) -> None:
    named = reader.pop()
    what, args = _two(reader)
    reader.push(Made(what, (args, named)))


def _symbol(reader: PickleReader) -> None:
    module, name = _two(reader)
    if not isinstance(module, str) or not isinstance(name, str):
        raise BadPickleError("no name")
    reader.push(Symbol(module, name))


def _symbol_in_text(reader: PickleReader) -> None:
    module = reader.line()
    reader.push(Symbol(module, reader.line()))


def _last(count: int) -> Callable[[PickleReader], None]:
    def step(reader: PickleReader) -> None:
        values = [reader.pop() for _ in range(count)]
        reader.push_tuple(tuple(reversed(values)))

    return step


def _long(reader: PickleReader) -> None:
    size = reader.byte()
    if size > _LONG:
        raise BadPickleError("an integer of more than 128 bits")
    reader.push(reader.number(size, signed=True))


def _remember(size: int) -> Callable[[PickleReader], None]:
    def step(reader: PickleReader) -> None:
        reader.memory[reader.number(size)] = _top(reader)

    return step


def _recall(size: int) -> Callable[[PickleReader], None]:
    def step(reader: PickleReader) -> None:
        number = reader.number(size)
        if number not in reader.memory:
            raise BadPickleError("nothing remembered under a number")
        reader.push(reader.memory[number])

    return step


def _memoize(reader: PickleReader) -> None:
    reader.memory[len(reader.memory)] = _top(reader)


def _top(reader: PickleReader) -> object:
    value = reader.pop()
    reader.push(value)
    return value


def _text(size: int) -> Callable[[PickleReader], None]:
    return lambda reader: reader.push(reader.take(reader.number(size)).decode("utf-8", "surrogatepass"))


def _bytes(size: int) -> Callable[[PickleReader], None]:
    return lambda reader: reader.push(reader.take(reader.number(size)))


def _constant(value: object) -> Callable[[PickleReader], None]:
    return lambda reader: reader.push(value)


def _integer(size: int, signed: bool = False) -> Callable[[PickleReader], None]:
    return lambda reader: reader.push(reader.number(size, signed))


def _refer(reader: PickleReader) -> None:
    key = reader.pop()
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, _PLAIN) or (isinstance(part, tuple) and all(isinstance(one, _PLAIN) for one in part)) for part in parts):
        raise BadPickleError("a reference by something else than plain values")
    reader.references.append(key)
    reader.push(Reference(key))


def _protocol(reader: PickleReader) -> None:
    if not 2 <= reader.byte() <= 5:
        raise BadPickleError("an unknown protocol")


def _frame(reader: PickleReader) -> None:
    """A frame says how much to read at once, which is all in memory here."""
    reader.take(8)


def _drop(reader: PickleReader) -> None:
    reader.stack.pop()


def _drop_marked(reader: PickleReader) -> None:
    reader.marked()


def _stop(_: PickleReader) -> None:
    """Where the pickle ends; `read_pickle` looks for it."""


_STEPS: Mapping[int, Callable[[PickleReader], None]] = {
    ord("\x80"): _protocol,
    ord("\x95"): _frame,
    ord("."): _stop,
    ord("("): _constant(MARK),
    ord("N"): _constant(None),
    ord("\x88"): _constant(True),
    ord("\x89"): _constant(False),
    ord("K"): _integer(1),
    ord("M"): _integer(2),
    ord("J"): _integer(4, signed=True),
    ord("\x8a"): _long,
    ord("G"): lambda reader: reader.push(struct.unpack(">d", reader.take(8))[0]),
    ord("X"): _text(4),
    ord("\x8c"): _text(1),
    ord("\x8d"): _text(8),
    ord("B"): _bytes(4),
    ord("C"): _bytes(1),
    ord("\x8e"): _bytes(8),
    ord("\x96"): _bytes(8),
    ord("]"): lambda reader: reader.push_container([]),
    ord("a"): lambda reader: _append(reader, [reader.pop()]),
    ord("e"): lambda reader: _append(reader, reader.marked()),
    ord(")"): _constant(()),
    ord("\x85"): _last(1),
    ord("\x86"): _last(2),
    ord("\x87"): _last(3),
    ord("t"): lambda reader: reader.push_tuple(tuple(reader.marked())),
    ord("}"): lambda reader: reader.push_container(Pairs()),
    ord("s"): lambda reader: _set(reader, _two(reader)),
    ord("u"): lambda reader: _set(reader, reader.marked()),
    ord("\x8f"): lambda reader: reader.push_container([]),
    ord("\x90"): lambda reader: _append(reader, reader.marked()),
    ord("\x91"): lambda reader: reader.push(reader.marked()),
    ord("c"): _symbol_in_text,
    ord("\x93"): _symbol,
    ord("R"): _make,
    ord("\x81"): _make,
    ord("\x92"): _make_with_names,
    ord("b"): _build,
    ord("q"): _remember(1),
    ord("r"): _remember(4),
    ord("\x94"): _memoize,
    ord("h"): _recall(1),
    ord("j"): _recall(4),
    ord("U"): _text(1),
    ord("Q"): _refer,
    ord("0"): _drop,
    ord("1"): _drop_marked,
}
