"""A virtual checkpoint read from end to end, beside `apply` and a copy of the base in turns: `python -m benchmarks.virtual [GB]`."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import deltapack
from benchmarks.checkpoints import build, llama_of_size

__all__ = ["main"]

PIECE = 1 << 22
ROUNDS = 5


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def read_all(base: Path, pack: Path) -> None:
    with deltapack.VirtualFolder(base, pack) as folder:
        for name, size in folder.names().items():
            for start in range(0, size, PIECE):
                folder.read(name, start, PIECE)


def first_bytes(base: Path, pack: Path) -> tuple[float, float, float]:
    """Milliseconds to open, then to the first byte of a weight file, then to an element in the middle of one."""
    start = time.perf_counter()
    folder = deltapack.VirtualFolder(base, pack)
    opened = time.perf_counter()
    name, size = max(folder.names().items(), key=lambda item: item[1])
    first = seconds(lambda: folder.read(name, 0, 1))
    element = seconds(lambda: folder.read(name, size // 2, 1))
    folder.close()
    return 1e3 * (opened - start), 1e3 * first, 1e3 * element


def main() -> int:
    family = build(llama_of_size(float(sys.argv[1]) if len(sys.argv) > 1 else 0.5), 1)
    recipes = {"drop rate 0.9": deltapack.Recipe(drop_rate=0.9, values="int4"), "budget": deltapack.Recipe()}
    recipes["exact"] = deltapack.Recipe(exact=True)
    with tempfile.TemporaryDirectory(dir=family.base.parent) as work:
        for title, recipe in recipes.items():
            pack, out = Path(work) / "tuned.dpk", Path(work) / "out"
            deltapack.compress(family.base, family.tuned[0], pack, recipe=recipe, force=True)
            calls: dict[str, Callable[[], object]] = {
                "read a virtual folder": lambda pack=pack: read_all(family.base, pack),  # type: ignore[misc]
                "apply": lambda pack=pack, out=out: deltapack.apply(family.base, pack, out),  # type: ignore[misc]
                "copy the base": lambda out=out: shutil.copytree(family.base, out),  # type: ignore[misc]
            }
            taken: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    shutil.rmtree(out, ignore_errors=True)
                    taken[name].append(seconds(call))
            middle = {name: statistics.median(times) for name, times in taken.items()}
            ratio = middle["apply"] / middle["read a virtual folder"]
            times = ", ".join(f"{name} {value:.3f} s" for name, value in middle.items())
            opened, first, element = (
                statistics.median(row) for row in zip(*(first_bytes(family.base, pack) for _ in range(5)), strict=True)
            )
            print(f"{title}, {family.nbytes / 1e9:.2f} GB: {times}; speed of reading / of apply: {ratio:.2f}")
            print(f"  open {opened:.1f} ms, first byte {first:.2f} ms, a byte in the middle {element:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
