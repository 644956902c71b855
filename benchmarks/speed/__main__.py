"""`python -m benchmarks.speed`: see the package."""

from __future__ import annotations

import sys

from benchmarks.speed.command import main

if __name__ == "__main__":
    sys.exit(main())
