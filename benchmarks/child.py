"""One library call in a process of its own: `python -m benchmarks.child '["apply", {...}]'` prints its peak memory and seconds."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["call_library", "peak_mb"]

WITH_TORCH = {"LiveModel", "attach", "load_model", "load_state_dict"}
"""Public names that load torch; commands do without."""


def main(call: str) -> None:
    verb, arguments = json.loads(call)
    if arguments.pop("without_numba", False):
        sys.modules["numba"] = None  # type: ignore[assignment]  # what a machine without it does
    above = 0.0
    if verb == "add_to":
        above, seconds = _add_to(**arguments)
    else:
        start = time.perf_counter()
        call_library(verb, arguments)
        seconds = time.perf_counter() - start
    print(json.dumps([peak_mb() - above, seconds]))


def call_library(verb: str, arguments: Mapping[str, Any]) -> None:
    """Call a function of the library whose arguments came as JSON."""
    import deltapack

    if "recipe" in arguments:
        arguments = {**arguments, "recipe": deltapack.Recipe(**arguments["recipe"])}
    if verb == "import":
        for name in set(deltapack.__all__) - WITH_TORCH:
            getattr(deltapack, name)
    elif verb == "inspect":
        from deltapack.packs.inspecting import inspect_pack

        inspect_pack(arguments["pack"])
    else:
        getattr(deltapack, verb)(**arguments)


def _add_to(base: str, pack: str, workers: int, load: bool, verify: bool) -> tuple[float, float]:
    """Apply in memory; return the MB that the process had before, and the seconds."""
    from benchmarks.speed.memory_apply import Way, apply_once, read_state

    state = read_state(Path(base))
    before = peak_mb()
    start = time.perf_counter()
    apply_once(Path(pack), state, workers, Way("", load, verify))
    return before, time.perf_counter() - start


def peak_mb() -> float:
    """VmHWM, because ru_maxrss of a child starts with what its parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    main(sys.argv[1])
