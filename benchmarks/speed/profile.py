"""Where the time goes: a sampler that looks at every thread many times a second and sorts what it sees into stages.

    python -m benchmarks.speed --profile compress

Numba kernels, zstd, digests, reads and writes release the interpreter's lock, so the sampler sees them while they run, as the line
of Python that called them.
"""

from __future__ import annotations

import linecache
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from benchmarks.results import Table
from benchmarks.speed.candidates import in_memory, in_memory_name, two_states
from benchmarks.speed.inputs import DEFAULT, Bench, Setting
from benchmarks.timing import Candidate

__all__ = ["ROWS", "profile_table", "stage_of"]

ROWS: Mapping[str, Callable[[Bench], Candidate]] = {
    "compress": lambda bench: bench.compress(DEFAULT, 2).candidate(),
    "compress-1": lambda bench: bench.compress(DEFAULT, 1).candidate(),
    "apply": lambda bench: bench.apply(DEFAULT, 2).candidate(),
    "apply-1": lambda bench: bench.apply(DEFAULT, 1).candidate(),
    "merge": lambda bench: bench.merge(4, 2).candidate(),
    "merge-1": lambda bench: bench.merge(4, 1).candidate(),
    "verify": lambda bench: bench.verify(2, base=True).candidate(),
    "memory-gaps": lambda bench: _in_memory(bench, Setting(0.9, "int4", "gaps"), 2),
    "memory-gaps-1": lambda bench: _in_memory(bench, Setting(0.9, "int4", "gaps"), 1),
    "memory-seeded": lambda bench: _in_memory(bench, DEFAULT, 2),
    "memory-seeded-1": lambda bench: _in_memory(bench, DEFAULT, 1),
}
STAGES = (
    ("waiting", r"\.(get|wait|acquire|join|result)\(|with self\._?(lock|condition)"),
    ("sync", r"fsync|fdatasync|\.sync\(|copy_file_range|sendfile"),
    ("write", r"\bp?write|pwritev"),
    ("read", r"preadv?|readinto|\bread\(|\.read\(|read_into\("),
    ("digest", r"xxh|sha256|digest\(|hash64\("),
    ("zstd", r"compress|zstd|ZSTD"),
    ("kernels", r"\bactive\(\)\.|\bkernels\.|\bcpu\."),
)
PLACES = (("digest", "format/digest"), ("zstd", "format/frames"), ("kernels", "kernels/"), ("waiting", "lib/python"))
OTHER = "numpy, python"
INTERVAL = 0.001
LINES = 25


def stage_of(path: str, line: str) -> str:
    """Return the stage of a line of source; `numpy, python` where it is none that is known."""
    for stage, pattern in STAGES:
        if re.search(pattern, line):
            return stage
    return next((stage for stage, place in PLACES if place in path), OTHER)


def _in_memory(bench: Bench, setting: Setting, workers: int) -> Candidate:
    ways = in_memory(bench.pack(setting), *two_states(bench.base))
    return next(way for way in ways if way.name == in_memory_name(workers))


def profile_table(bench: Bench, row: str, runs: int = 3) -> list[Table]:
    """Run a row some times after a warm-up and return where its threads were: by stage, and by line."""
    candidate = ROWS[row](bench)
    candidate.prepare()
    candidate.call()
    seen: Counter[tuple[str, int]] = Counter()
    seconds = 0.0
    for _ in range(runs):
        candidate.prepare()
        start = time.perf_counter()
        _sample(candidate.call, seen)
        seconds += time.perf_counter() - start
    lines = {place: linecache.getline(place[0], place[1]).strip() for place in seen}
    total = seen.total() or 1
    stages: Counter[str] = Counter()
    for place, count in seen.items():
        stages[stage_of(place[0], lines[place])] += count
    working = total - stages["waiting"] or 1
    by_stage = tuple(
        (stage, 100 * count / total, None if stage == "waiting" else 100 * count / working) for stage, count in stages.most_common()
    )
    by_line = tuple(
        (stage_of(place[0], lines[place]), 100 * count / working, f"{'/'.join(Path(place[0]).parts[-2:])}:{place[1]}", f"`{lines[place]}`")
        for place, count in seen.most_common()
        if stage_of(place[0], lines[place]) != "waiting"
    )
    caption = f"{candidate.name}, {bench.family.nbytes / 1e9:.2f} GB, {seconds / runs:.3f} s a run"
    return [
        Table("stages", f"{caption}, by stage", ("stage", "% of all threads' time", "% of their work"), by_stage),
        Table("lines", f"{caption}, by line", ("stage", "% of the work", "where", "line"), by_line[:LINES]),
    ]


def _sample(call: Callable[[], object], seen: Counter[tuple[str, int]]) -> None:
    """Run a call in this thread while another one samples all others."""
    stop = threading.Event()

    def watch() -> None:
        own = threading.get_ident()
        while not stop.wait(INTERVAL):
            for thread, frame in sys._current_frames().items():
                if thread != own:
                    seen[_place(frame)] += 1

    watcher = threading.Thread(target=watch, daemon=True)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(INTERVAL / 4)
    watcher.start()
    try:
        call()
    finally:
        stop.set()
        watcher.join()
        sys.setswitchinterval(switch)


def _place(frame: FrameType) -> tuple[str, int]:
    """Return file and line of the innermost frame that is Python source."""
    at: FrameType | None = frame
    while at is not None and not at.f_code.co_filename.endswith(".py"):
        at = at.f_back
    return (at.f_code.co_filename, at.f_lineno or 0) if at is not None else ("?", 0)  # between lines it may have none
