"""Run every benchmark and write RESULTS.md: `python -m benchmarks [--quick] [--json]`."""

from __future__ import annotations

import sys

from benchmarks import codes, fidelity, loops, memory, results, sizes
from benchmarks.speed import __main__ as speed

if __name__ == "__main__":
    sys.exit(max(*(results.main(module.measure) for module in (sizes, codes, memory, fidelity, loops)), speed.main()))
