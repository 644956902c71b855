"""How small and how fast exact chunks are on real pairs: `python -m benchmarks.exact [--quick]`. Prints, and writes nothing.

Bytes are shares of those of the fine-tune's elements, tensor by tensor, beside the conditional order-0 entropy of what the codec codes
and beside peers where they are installed. Speeds are of one thread, in its own CPU time, beside a copy in memory: of tensors as they
are, and of all of them end to end in full chunks.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pairs import Pair, real_pairs
from benchmarks.results import Cell, Section, Table, progress
from deltapack import kernels
from deltapack.checkpoint import open_checkpoint
from deltapack.codecs.exact import decode_exact_chunk, encode_exact_chunk
from deltapack.codecs.exact_bytes import Cursor
from deltapack.codecs.exact_table import MOST_TABLE_BYTES, read_table
from deltapack.dtypes import BY_NAME, DType
from deltapack.format.digest import CHUNK
from deltapack.kernels.exact_numbers import numbers_of, symbol_table
from deltapack.kernels.rounding import round_bf16

__all__ = ["measure"]

SIZE_HEADERS = (
    "pair",
    "type",
    "MB",
    "exact",
    "its entropy",
    "over %",
    "zstd -3 --patch-from",
    "alone",
    "zipnn, alone",
    "equal, planes, dense, sparse, shared",
)
SPEED_HEADERS = ("pair", "type", "chunks", "encode MB/s", "decode MB/s", "copy MB/s", "encode: x copy", "decode: x copy")
NOTES = (
    "Shares of the bytes of the fine-tune's elements; alone: without the base.",
    "Entropy: of the symbols by class and exponent of the base, after what the table predicts, and all raw bits; of each chunk by itself.",
    "zstd: all elements as one file against the base's, with a window that holds both. zipnn: each tensor.",
    "Speed: the best of several runs of each chunk, in turns with a copy of it.",
)
DENSE = 2
Array = NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """Elements of base (none without a partner) and fine-tune."""

    base: Array | None
    tuned: Array


def tensors_of(pair: Pair, dtype: DType) -> list[Tensor]:
    """Read the f32 tensors of a pair, rounded to bf16 where that is asked for; names in the base may have something in front."""
    convert: Callable[[Array], Array] = round_bf16 if dtype.name == "bf16" else np.ascontiguousarray
    out = []
    with open_checkpoint(pair.base) as base, open_checkpoint(pair.finetuned) as tuned:
        for name, tensor in tuned.tensors.items():
            if tensor.dtype.name == "f32":
                partners = [key for key in base.tensors if key == name or key.endswith(f".{name}")]
                partners = [key for key in partners if base.tensors[key].dtype.name == "f32" and base.tensors[key].shape == tensor.shape]
                before = convert(base.read(partners[0]).reshape(-1)) if partners else None
                out.append(Tensor(before, convert(tuned.read(name).reshape(-1))))
    return out


def chunks_of(tensors: list[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        for start in range(0, len(tensor.tuned), CHUNK):
            inside = slice(start, start + CHUNK)
            yield Tensor(None if tensor.base is None else tensor.base[inside], tensor.tuned[inside])


def joined(tensors: list[Tensor]) -> list[Tensor]:
    """All tensors with a partner end to end, cut to full chunks."""
    whole = [(tensor.base, tensor.tuned) for tensor in tensors if tensor.base is not None]
    base, tuned = (np.concatenate(side) for side in zip(*whole, strict=True))
    length = max(CHUNK, len(base) // CHUNK * CHUNK)
    return [Tensor(base[:length], tuned[:length])]


def entropy_bytes(chunk: Tensor, data: bytes, dtype: DType) -> float:
    """Return the conditional order-0 entropy of a dense chunk; of others their size."""
    if data[0] != DENSE or chunk.base is None:
        return len(data)
    loops, numbers = kernels.active(), numbers_of(dtype)
    base, tuned = chunk.base.view(numbers.storage), chunk.tuned.view(numbers.storage)
    cursor, blocks = Cursor(data[1:]), -(-len(base) // 128)
    table = read_table(cursor.stream(1, MOST_TABLE_BYTES, "the table"), numbers)
    classes = np.frombuffer(cursor.stream(blocks, blocks, "the classes"), np.uint8) if table.kinds == 2 else np.zeros(blocks, np.uint8)
    predicted = base if table.steps is None else loops.predicted_of(base, classes.copy(), table.steps, numbers)
    symbols = loops.symbols_of(predicted, tuned, numbers, table.far)
    counts = loops.count_symbols(base, classes.copy(), symbols, numbers, table.kinds)[1].astype(np.float64)
    counts = counts.reshape(-1, counts.shape[-1])
    sums = counts.sum(axis=1)
    bits = (sums * np.log2(np.maximum(sums, 1))).sum() - (counts * np.log2(np.maximum(counts, 1))).sum()
    return float(bits + symbol_table(numbers, table.far).widths[symbols].sum(dtype=np.int64)) / 8


def patch_bytes(tensors: list[Tensor]) -> int | None:
    """Return what the zstd command makes of all elements, against those of the base."""
    if shutil.which("zstd") is None:
        return None
    with TemporaryDirectory() as name:
        base, tuned, out = (Path(name) / part for part in ("base", "tuned", "out"))
        base.write_bytes(b"".join(tensor.base.tobytes() for tensor in tensors if tensor.base is not None))
        tuned.write_bytes(b"".join(tensor.tuned.tobytes() for tensor in tensors))
        subprocess.run(["zstd", "-q", "-3", "--long=31", f"--patch-from={base}", str(tuned), "-o", str(out)], check=True)
        return out.stat().st_size


def zipnn_bytes(tensors: list[Tensor], dtype: DType) -> int | None:
    """Return what zipnn makes of the elements of each tensor."""
    try:
        from zipnn import ZipNN
    except ImportError:
        return None
    kind = {"f32": "float32", "bf16": "bfloat16"}[dtype.name]
    return sum(len(ZipNN(bytearray_dtype=kind, input_format="byte").compress(tensor.tuned.tobytes())) for tensor in tensors)


def size_row(pair: Pair, dtype: DType, tensors: list[Tensor]) -> tuple[Cell, ...]:
    size = entropy = alone = 0.0
    forms = [0] * 5
    for chunk in chunks_of(tensors):
        data = encode_exact_chunk(chunk.base, chunk.tuned, dtype)
        forms[data[0]] += 1
        size += len(data)
        entropy += entropy_bytes(chunk, data, dtype)
        alone += len(encode_exact_chunk(None, chunk.tuned, dtype))
    whole = sum(tensor.tuned.nbytes for tensor in tensors)
    peers = [None if found is None else found / whole for found in (patch_bytes(tensors), zipnn_bytes(tensors, dtype))]
    shares = (size / whole, entropy / whole, 100 * (size / entropy - 1), peers[0], alone / whole, peers[1])
    return pair.name, dtype.name, whole / 1e6, *shares, " ".join(map(str, forms))


def speed_row(pair: Pair, dtype: DType, name: str, tensors: list[Tensor], rounds: int) -> tuple[Cell, ...]:
    seconds, whole = np.zeros(3), 0
    for chunk in chunks_of(tensors):
        best = np.full(3, np.inf)
        whole += chunk.tuned.nbytes
        for _ in range(rounds):
            times = [time.thread_time()]
            data = encode_exact_chunk(chunk.base, chunk.tuned, dtype)
            times.append(time.thread_time())
            back = decode_exact_chunk(data, chunk.base, dtype, len(chunk.tuned))
            times.append(time.thread_time())
            chunk.tuned.copy()
            times.append(time.thread_time())
            best = np.minimum(best, np.diff(times))
            if back.tobytes() != chunk.tuned.tobytes():
                raise RuntimeError(f"{pair.name}: an exact chunk did not come back")
        seconds += best
    return pair.name, dtype.name, name, *(whole / seconds / 1e6).tolist(), *(seconds[:2] / seconds[2]).tolist()


def measure(quick: bool = False) -> Section:
    """Return the tables."""
    pairs, missing = real_pairs()
    sizes: list[tuple[Cell, ...]] = []
    speeds: list[tuple[Cell, ...]] = []
    rounds = 2 if quick else 5
    for pair in pairs[:1] if quick else pairs:
        for dtype in (BY_NAME["f32"], BY_NAME["bf16"]):
            progress(f"{pair.name} as {dtype}")
            tensors = tensors_of(pair, dtype)
            tensors = tensors[: len(tensors) // 8] if quick else tensors
            sizes.append(size_row(pair, dtype, tensors))
            speeds.append(speed_row(pair, dtype, "tensors", tensors, rounds))
            speeds.append(speed_row(pair, dtype, "full", joined(tensors), rounds))
    tables = (Table("sizes", "Bytes", SIZE_HEADERS, tuple(sizes)), Table("speed", "Speed of one thread", SPEED_HEADERS, tuple(speeds)))
    return Section("Exact chunks", "python -m benchmarks.exact", tables, (*NOTES, *missing))


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of one pair, in seconds")
    print(measure(parser.parse_args().quick).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
