from __future__ import annotations

import sys

import pytest

from benchmarks.processes import CommandFailedError, run_command, run_verb


def test_seconds_and_memory_are_those_of_the_command_not_of_this_process() -> None:
    ballast = bytearray(b"x" * 300_000_000)
    small = run_command([sys.executable, "-c", "pass"])
    large = run_command([sys.executable, "-c", "import time; x = b'x' * 200_000_000; time.sleep(0.3)"])
    del ballast
    assert small.peak_mb < 100
    assert 200 < large.peak_mb < 290
    assert large.seconds > 0.3


def test_a_failing_command_says_what_it_said() -> None:
    with pytest.raises(CommandFailedError, match=r"ended with 3: .*no luck"):
        run_command([sys.executable, "-c", "print('no luck'); raise SystemExit(3)"])
    with pytest.raises(CommandFailedError, match="no-such-program"):
        run_command(["no-such-program"])


def test_a_library_call_reports_its_own_peak() -> None:
    run = run_verb("import", {})
    assert 20 < run.peak_mb < 200 and 0 < run.seconds < 60
