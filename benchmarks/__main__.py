"""Run every benchmark, write RESULTS.md and the data files: `python -m benchmarks [--quick] [--json]`.

The study of what packs keep trains models, which takes hours: it runs by itself, as `python -m benchmarks.fidelity`.
"""

from __future__ import annotations

import sys

from benchmarks import codes, command, loops, memory, overhead, sizes
from benchmarks.exact import __main__ as exact
from benchmarks.fidelity import values
from benchmarks.speed import __main__ as speed

if __name__ == "__main__":
    found = [command.main(module.measure) for module in (sizes, codes, memory, values, loops, overhead)]
    sys.exit(max(*found, exact.run(sys.argv[1:]), speed.main()))
