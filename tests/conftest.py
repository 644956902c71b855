"""Fixtures of all tests; pytest finds `support`, `vectors` and `benchmarks` by `pythonpath` in pyproject.toml."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import settings
from support.fixtures import Applied, Merged, PackOf
from support.poison import malloc_poisoned, poisoned

TESTS_OF_LOOPS = {"codecs", "device", "kernels", "sparsify"}

# Deadlines would fail tests that are right on a machine that is busy, or where loops are still being compiled: no test asserts a time.
# Where CI is set, examples are the same in every run, so that a change that is not to blame stays green; everywhere else, new ones are
# tried, and what fails prints the line that makes it again.
settings.register_profile("deltapack", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("deltapack")


@pytest.fixture
def pack_of(tmp_path: Path) -> PackOf:
    return PackOf(tmp_path)


@pytest.fixture
def applied(tmp_path: Path) -> Applied:
    return Applied(tmp_path)


@pytest.fixture
def merged(tmp_path: Path) -> Merged:
    return Merged(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def unwritten_buffers_are_poisoned() -> Iterator[None]:
    with poisoned():
        yield


@pytest.fixture(autouse=True)
def unwritten_memory_is_poisoned(request: pytest.FixtureRequest) -> Iterator[None]:
    with malloc_poisoned() if request.path.parent.name in TESTS_OF_LOOPS else nullcontext():
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """In the background of a shell SIGINT is ignored, by children, too; tests that send it would wait for what never comes."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
