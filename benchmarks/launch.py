"""Run a command and print its seconds, peak memory and processor time as JSON; standard library only, so that it is small itself.

Between a large process and what it measures: ru_maxrss of a child starts with the peak of the process it was forked from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


def main() -> int:
    """Run `sys.argv[2:]`, output into the file `sys.argv[1]`; print `[seconds, peak MB, return code, processor seconds]`."""
    with open(sys.argv[1], "wb") as output:
        start = time.perf_counter()
        child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / 1e6 if sys.platform == "darwin" else usage.ru_maxrss * 1024 / 1e6
    print(json.dumps([seconds, peak, child.returncode, usage.ru_utime + usage.ru_stime]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
