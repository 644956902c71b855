"""Other ways to make a fine-tune small: zstd, plain and as a patch from the base."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import zstandard

from deltapack.checkpoint import open_checkpoint

__all__ = ["PeerResult", "run_zstd", "weight_bytes"]

LEVEL_19_LIMIT = 128 << 20
"""Bytes of a weight file above which zstd -19 takes too long to be part of a benchmark."""


@dataclass(frozen=True)
class PeerResult:
    """Name of the peer and setting, compressed bytes (none where it did not run), seconds, and why if not."""

    peer: str
    nbytes: int | None
    seconds: float | None
    reason: str = ""


def weight_bytes(checkpoint: Path) -> int:
    """Return the size of the weight files."""
    with open_checkpoint(checkpoint) as opened:
        return sum(path.stat().st_size for path in opened.weight_paths())


def run_zstd(base: Path, tuned: Path, levels: Sequence[int] = (3, 19)) -> Iterator[PeerResult]:
    """Compress the weight files of `tuned`, all as one stream, plain and as a patch from those of `base`.

    Args:
        base: Base checkpoint.
        tuned: Fine-tuned checkpoint.
        levels: Of zstd.
    """
    with TemporaryDirectory() as folder:
        files = [_joined(checkpoint, Path(folder) / name) for name, checkpoint in (("base", base), ("tuned", tuned))]
        for level in levels:
            for patch in (False, True):
                name = f"zstd -{level}" + (f" --long={_window(files)} --patch-from=BASE" if patch else "")
                if level == 19 and max(file.stat().st_size for file in files) > LEVEL_19_LIMIT:
                    yield PeerResult(name, None, None, "not run: over 5 minutes of work at this size, see the smaller pairs")
                    continue
                start = time.perf_counter()
                nbytes = _zstd(files[0] if patch else None, files[1], level, _window(files))
                yield PeerResult(f"{name} ({_tool()})", nbytes, time.perf_counter() - start)


def _joined(checkpoint: Path, out: Path) -> Path:
    with open_checkpoint(checkpoint) as opened, out.open("wb") as target:
        for path in opened.weight_paths():
            with path.open("rb") as source:
                shutil.copyfileobj(source, target)
    return out


def _window(files: list[Path]) -> int:
    """A window that covers the larger file; --patch-from needs it."""
    return max(27, max(file.stat().st_size for file in files).bit_length())


def _tool() -> str:
    if shutil.which("zstd") is None:
        return f"python-zstandard {zstandard.__version__}; no zstd command"
    text = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True).stdout
    return "zstd " + next((word.strip(",") for word in text.split() if word.startswith("v")), "command")


def _zstd(base: Path | None, tuned: Path, level: int, window: int) -> int:
    if shutil.which("zstd") is None:
        return _zstandard(base, tuned, level, window)
    patch = [f"--long={window}", f"--patch-from={base}"] if base is not None else []
    out = tuned.with_suffix(".zst")
    subprocess.run(["zstd", "-qq", "-f", f"-{level}", *patch, str(tuned), "-o", str(out)], check=True)
    nbytes = out.stat().st_size
    out.unlink()
    return nbytes


def _zstandard(base: Path | None, tuned: Path, level: int, window: int) -> int:
    """The same through the library, for machines without the command; whole files in memory."""
    data = tuned.read_bytes()
    if base is None:
        return len(zstandard.ZstdCompressor(level=level).compress(data))
    params = zstandard.ZstdCompressionParameters.from_level(level, window_log=window, enable_ldm=True)
    reference = zstandard.ZstdCompressionDict(base.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(compression_params=params, dict_data=reference).compress(data))
