"""What deltapack makes of a pair: its chunks alone, and packs of whole checkpoints; checked to come back bit for bit."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.exact.inputs import Case, chunks_of
from benchmarks.pairs import Pair
from benchmarks.results import Cell, Table, progress
from deltapack.checkpoint import open_checkpoint, open_writer, plan_shards
from deltapack.checkpoint.manifest import MANIFEST
from deltapack.codecs.exact import decode_exact_chunk, encode_exact_chunk
from deltapack.format.digest import CHUNK
from deltapack.packing.compressing import compress
from deltapack.packing.recipe import Recipe
from deltapack.packs.pack import open_pack
from deltapack.restoring.applying import apply

__all__ = ["Packed", "Whole", "file_table", "packed", "whole"]

FILE_HEADERS = (
    "pair", "files", "MB", "pack bytes", "share", "payload share", "beside payload %", "compress s", "apply s", "weight files, same sha256",
    "other files, same sha256",
)  # fmt: skip
SHARD_BYTES = 25_000_000
WEIGHTS = re.compile(r"\.safetensors(\.index\.json)?$|^pytorch_model\.bin$")


@dataclass(frozen=True)
class Packed:
    """Bytes, and CPU seconds of encoding and decoding."""

    size: int
    encode: float
    decode: float


def packed(case: Case) -> Packed:
    """Encode and decode all chunks of a pair, tensor by tensor.

    Raises:
        RuntimeError: One did not come back.
    """
    size, encode, decode = 0, 0.0, 0.0
    for chunk in chunks_of(case.tensors):
        times = [time.thread_time()]
        data = encode_exact_chunk(chunk.base, chunk.tuned, case.dtype)
        times.append(time.thread_time())
        back = decode_exact_chunk(data, chunk.base, case.dtype, len(chunk.tuned))
        times.append(time.thread_time())
        if back.tobytes() != chunk.tuned.tobytes():
            raise RuntimeError(f"{case.name}: an exact chunk did not come back")
        size, encode, decode = size + len(data), encode + times[1] - times[0], decode + times[2] - times[1]
    return Packed(size, encode, decode)


@dataclass(frozen=True)
class Whole:
    """A pack of a checkpoint.

    Attributes:
        nbytes: Of the weight files of the fine-tune.
        size: Of the pack.
        payload: What the tensors take in it, with tables that they share.
        seconds: CPU time of compressing and of applying, on one thread.
        weights: How many weight files, indices of shards among them, came back with the same SHA-256, of how many; or that tensors did.
        others: The same of side files.
    """

    nbytes: int
    size: int
    payload: int
    seconds: tuple[float, float]
    weights: str
    others: str


def whole(base: Path, tuned: Path) -> Whole:
    """Compress a fine-tune to an exact pack, apply it, and compare what comes back with the fine-tune.

    Raises:
        RuntimeError: A tensor is not bit for bit what it was.
    """
    with TemporaryDirectory() as name:
        pack, out = Path(name) / "exact.dpk", Path(name) / "restored"
        times = [time.process_time()]
        compress(base, tuned, pack, recipe=Recipe(exact=True), workers=1, include_code=True)
        times.append(time.process_time())
        apply(base, pack, out, workers=1)
        times.append(time.process_time())
        _check(tuned, out)
        files = [path for path in sorted(tuned.rglob("*")) if path.is_file() and path.name != MANIFEST]
        weights = [path for path in files if WEIGHTS.search(path.name)]
        is_bin = all(path.suffix == ".bin" for path in weights)
        with open_pack(pack) as opened:
            payload = sum(opened[tensor].stored_bytes for tensor in opened) + sum(table.length for table in opened.index.tables)
        nbytes = sum(path.stat().st_size for path in weights)
        others = [path for path in files if path not in weights]
        same = "tensors only: .bin" if is_bin else _equal(weights, tuned, out)
        seconds = (times[1] - times[0], times[2] - times[1])
        return Whole(nbytes, pack.stat().st_size, payload, seconds, same, _equal(others, tuned, out))


def _check(tuned: Path, out: Path) -> None:
    with open_checkpoint(tuned) as before, open_checkpoint(out) as after:
        if list(before.tensors) != list(after.tensors) and set(before.tensors) != set(after.tensors):
            raise RuntimeError(f"{tuned}: another set of tensors came back")
        for name, entry in before.tensors.items():
            if after.tensors[name].dtype != entry.dtype or before.read(name).tobytes() != after.read(name).tobytes():
                raise RuntimeError(f"{tuned}: {name} did not come back")


def _equal(files: Sequence[Path], tuned: Path, out: Path) -> str:
    back = [out / path.relative_to(tuned) for path in files]
    same = sum(there.exists() and _digest(there) == _digest(path) for path, there in zip(files, back, strict=True))
    return f"{same} of {len(files)}"


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def file_table(pairs: Sequence[Pair]) -> Table:
    """Return a row for each pair as it is, and where that is one safetensors file, for the same in shards."""
    rows: list[tuple[Cell, ...]] = []
    for pair in pairs:
        progress(f"whole files: {pair.name}")
        rows.append(_file_row(pair, "as published"))
        if (pair.finetuned / "model.safetensors").exists():
            with TemporaryDirectory() as name:
                shards = _sharded(pair.finetuned, Path(name) / "sharded")
                rows.append(_file_row(Pair(pair.name, pair.base, Path(name) / "sharded"), f"in {shards} shards"))
    return Table("files", "Whole checkpoints", FILE_HEADERS, tuple(rows))


def _file_row(pair: Pair, files: str) -> tuple[Cell, ...]:
    found = whole(pair.base, pair.finetuned)
    beside = 100 * (found.size / found.payload - 1)
    shares = (found.size / found.nbytes, found.payload / found.nbytes, beside)
    return pair.name, files, found.nbytes / 1e6, found.size, *shares, *found.seconds, found.weights, found.others


def _sharded(folder: Path, out: Path) -> int:
    """Write a checkpoint in shards; return how many there are."""
    with open_checkpoint(folder) as tuned:
        shards = plan_shards([(name, own.dtype, own.shape) for name, own in tuned.tensors.items()], max_shard_size=SHARD_BYTES)
        with open_writer(out, shards) as writer:
            for name in tuned.tensors:
                elements = tuned.read(name).reshape(-1)
                for start in range(0, len(elements), CHUNK):
                    writer.write(name, start, elements[start : start + CHUNK])
    return len(list(out.glob("*.safetensors")))
