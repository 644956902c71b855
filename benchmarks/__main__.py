"""Run every benchmark, write RESULTS.md and the data files: `python -m benchmarks [--quick] [--json]`."""

from __future__ import annotations

import sys

from benchmarks import codes, command, fidelity, loops, memory, sizes
from benchmarks.exact import __main__ as exact
from benchmarks.speed import __main__ as speed

if __name__ == "__main__":
    found = [command.main(module.measure) for module in (sizes, codes, memory, fidelity, loops)]
    sys.exit(max(*found, exact.run(sys.argv[1:]), speed.main()))
