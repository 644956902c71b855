"""What other tools make of a pair: bytes, and seconds of one core, each checked to come back but where it is said to be lossy.

Command-line tools work on all elements end to end, those of the base beside them (`inputs.write_files`). Seconds are CPU time, of
commands that of their process.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.checkpoints import cache_folder
from benchmarks.exact.inputs import Case

__all__ = ["Result", "elements_tools", "tool_results"]

Array = NDArray[Any]
ZIPNN_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
WINDOW = "--long=31"


@dataclass(frozen=True)
class Result:
    """What a tool did.

    Attributes:
        tool: Its name.
        size: Bytes; none where it did not run.
        encode: Seconds.
        decode: Seconds; none where decoding was not tried.
        remark: Why there is no size, or what is not as it was.
    """

    tool: str
    size: int | None = None
    encode: float | None = None
    decode: float | None = None
    remark: str = ""


def tool_results(case: Case, folder: Path) -> Iterator[Result]:
    """Yield what each tool makes of a pair, whose files are in a folder."""
    yield from elements_tools(case, folder)
    yield _zstd(folder, 19)
    yield _xdelta(folder)
    yield _deltatensors(case, folder)
    base = np.concatenate([np.zeros_like(own.tuned) if own.base is None else own.base for own in case.tensors])
    tuned = np.concatenate([own.tuned for own in case.tensors])
    base, tuned = (side.view(f"<u{case.dtype.itemsize}") for side in (base, tuned))
    yield _timed("XOR, byte planes, zstd -3 (BitX)", lambda: _planes(base ^ tuned))
    yield _timed("difference, zigzag, byte planes, zstd -3", lambda: _planes(_zigzag(tuned - base)))
    if case.changed < 50:
        yield _timed("int32 positions + values", lambda: _sparse(base, tuned, raw=True))
        yield _timed("int32 positions + values, zstd -3", lambda: _sparse(base, tuned, raw=False))
        yield _timed("gaps + values, zstd -3 (PULSE)", lambda: _gaps(base, tuned))


def _timed(tool: str, encode: Callable[[], int]) -> Result:
    start = time.thread_time()
    size = encode()
    return Result(tool, size, time.thread_time() - start)


def _command(words: Sequence[str | Path]) -> float:
    """Run a command and return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _zstd(folder: Path, level: int) -> Result:
    tool = f"zstd -{level} --patch-from"
    if shutil.which("zstd") is None:
        return Result(tool, remark="apt-get install zstd")
    base, tuned, out, back = (folder / name for name in ("base.bin", "tuned.bin", "out", "back"))
    encode = _command(["zstd", "-q", "-f", f"-{level}", WINDOW, f"--patch-from={base}", tuned, "-o", out])
    decode = _command(["zstd", "-q", "-f", "-d", WINDOW, "--memory=2048MB", f"--patch-from={base}", out, "-o", back])
    return _checked(Result(tool, out.stat().st_size, encode, decode), tuned, back)


def _xdelta(folder: Path) -> Result:
    tool = "xdelta3 -9"
    if shutil.which("xdelta3") is None:
        return Result(tool, remark="apt-get install xdelta3")
    base, tuned, out, back = (folder / name for name in ("base.bin", "tuned.bin", "out", "back"))
    window = ["-B", str(1 << 29)]
    encode = _command(["xdelta3", "-f", "-9", *window, "-e", "-s", base, tuned, out])
    decode = _command(["xdelta3", "-f", *window, "-d", "-s", base, out, back])
    return _checked(Result(tool, out.stat().st_size, encode, decode), tuned, back)


def _checked(result: Result, tuned: Path, back: Path) -> Result:
    if back.read_bytes() != tuned.read_bytes():
        raise RuntimeError(f"{result.tool} did not bring the fine-tune back")
    return result


def elements_tools(case: Case, folder: Path) -> Iterator[Result]:
    """Yield what the faster tools make of the files in a folder."""
    yield _zstd(folder, 3)
    kind, tools = ZIPNN_TYPES.get(case.dtype.name), ("zipnn", "zipnn, on the XOR")
    for tool, files in zip(tools, (["tuned.bin"], ["tuned.bin", "base.bin"]), strict=True):
        if kind is None:
            yield Result(tool, remark=f"has no {case.dtype}")
        else:
            yield _task(tool, "zipnn_elements", kind, *(folder / file for file in files))


def _deltatensors(case: Case, folder: Path) -> Result:
    tool = "deltatensors, nothing dropped"
    if case.dtype.name not in ("f32", "bf16"):
        return Result(tool, remark=f"has no {case.dtype}")
    return _task(tool, "deltatensors_all", folder / "base", folder / "common", folder / "out.wdelta")


def _task(tool: str, *words: str | Path) -> Result:
    """Do a task in the environment of the peers; it prints bytes, seconds, and what percentage of elements is wrong if any may be."""
    try:
        environment = peers.environment(cache_folder(), make=False)
    except peers.PeersUnavailableError as error:
        return Result(tool, remark=str(error))
    done = subprocess.run(list(map(str, peers.task_command(environment, *words))), capture_output=True, text=True, check=False)
    if done.returncode:
        return Result(tool, remark=(done.stderr.strip().splitlines() or ["failed"])[-1])
    size, encode, decode, *wrong = json.loads(done.stdout.strip().splitlines()[-1])
    return Result(tool, size, encode, decode, f"{wrong[0]:.3g} % of the elements come back wrong" if wrong and wrong[0] else "")


def _zigzag(difference: Array) -> Array:
    signed = difference.view(f"<i{difference.itemsize}")
    folded = (signed << 1) ^ (signed >> (8 * signed.itemsize - 1))
    return folded.view(difference.dtype)


def _planes(whole: Array) -> int:
    """Return the bytes of the planes of some numbers, each as a zstd frame."""
    planes = whole.view(np.uint8).reshape(-1, whole.itemsize)
    return sum(len(zstandard.ZstdCompressor(level=3).compress(np.ascontiguousarray(plane).tobytes())) for plane in planes.T)


def _sparse(base: Array, tuned: Array, *, raw: bool) -> int:
    """Return the bytes of what weight synchronisation sends: where something changed, and what is there now."""
    changed = np.flatnonzero(base != tuned)
    parts = [changed.astype(np.int32).tobytes(), tuned[changed].tobytes()]
    return sum(map(len, parts)) if raw else sum(len(zstandard.ZstdCompressor(level=3).compress(part)) for part in parts)


def _gaps(base: Array, tuned: Array) -> int:
    """Return the bytes of differences of positions in the least of u8 (255: more follows), u16 or u32, and values; each as a frame."""
    changed = np.flatnonzero(base != tuned)
    gaps = np.diff(changed, prepend=-1) - 1
    whole, rest = np.divmod(gaps, 255)
    small = np.full(int(whole.sum()) + len(gaps), 255, np.uint8)
    small[np.cumsum(whole + 1) - 1] = rest
    wide = gaps.astype(np.uint16 if gaps.max(initial=0) < 1 << 16 else np.uint32)
    pack = zstandard.ZstdCompressor(level=3).compress
    return min(len(pack(way.tobytes())) for way in (small, wide)) + len(pack(tuned[changed].tobytes()))
