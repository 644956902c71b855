"""One library call, here or in a process of its own: `python -m benchmarks.child '["apply", {...}]'` prints its peak memory and seconds.

deltapack and numpy are imported inside functions: their import is part of what is measured, and numba may have to be hidden from it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["apply_once", "call_library", "peak_mb", "read_state"]

WITH_TORCH = {"LiveModel", "Slice", "attach", "load_model", "load_state_dict"}
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


def read_state(base: Path) -> dict[str, NDArray[Any]]:
    """Return every tensor of a checkpoint in its shape and storage type (bf16 as uint16)."""
    from deltapack.checkpoint import open_checkpoint

    with open_checkpoint(base) as opened:
        return {name: opened.read(name).reshape(info.shape) for name, info in opened.tensors.items()}


def apply_once(pack: Path, state: Mapping[str, NDArray[Any]], workers: int, *, load: bool, verify: bool) -> None:
    """Add a pack to a state.

    Args:
        pack: The file.
        state: Tensors of the base by name; changed in place.
        workers: Threads.
        load: Whether the streams of the pack are brought into memory before.
        verify: Whether the digests of base and result are checked.
    """
    import deltapack

    with deltapack.open_pack(pack) as opened:
        (opened.load() if load else opened).add_to(dict(state), weight=1.0, verify=verify, workers=workers)


def _add_to(base: str, pack: str, workers: int, load: bool, verify: bool) -> tuple[float, float]:
    """Apply in memory; return the MB that the process had before, and the seconds."""
    state = read_state(Path(base))
    before = peak_mb()
    start = time.perf_counter()
    apply_once(Path(pack), state, workers, load=load, verify=verify)
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
