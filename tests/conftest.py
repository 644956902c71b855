"""Fixtures of all tests; pytest finds `support`, `vectors` and `benchmarks` by `pythonpath` in pyproject.toml."""

from __future__ import annotations

import _thread
import importlib.util
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from support.laws import SHARE, USUAL
from support.poison import malloc_poisoned, poisoned

if TYPE_CHECKING:
    from support.fixtures import Applied, Merged, PackOf

WORKERS = 2
"""Each takes up to two gigabytes, and tests of loops and of several threads use more than one core."""
if importlib.util.find_spec("numba") is not None:
    # Models of tests are so small that numpy's loops would serve; tests/kernels/test_active.py sees to it that these write the same.
    os.environ.setdefault("DELTAPACK_LOOPS", "numba")
TESTS_OF_LOOPS = {"codecs", "device", "kernels", "sparsify"}

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the Hub; those that need one play it

# Deadlines would fail tests that are right on a machine that is busy, or where loops are still being compiled: no test asserts a time.
# Where CI is set, examples are the same in every run, so that a change that is not to blame stays green; everywhere else, new ones are
# tried, and what fails prints the line that makes it again. `DELTAPACK_EXAMPLES=10` tries 25 times as many as a usual run.
_tried, _same = max(1, round(USUAL * SHARE)), bool(os.environ.get("CI"))
settings.register_profile("deltapack", max_examples=_tried, deadline=None, print_blob=True, derandomize=_same)
settings.load_profile("deltapack")

_NEEDS_TORCH = re.compile(r"^(import torch|from torch|from deltapack\.(demo|device|live))", re.M)
_OF_SUPPORT = re.compile(r"^from support(?:\.(\w+) import| import ([\w, ]+))", re.M)


def _needs_torch(script: Path, seen: frozenset[Path] = frozenset()) -> bool:
    """Whether a script of tests, or what it imports of `support`, imports torch."""
    if script in seen or not script.is_file():
        return False
    text = script.read_text("utf-8")
    names = [name.strip() for pair in _OF_SUPPORT.findall(text) for part in pair for name in part.split(",") if name.strip()]
    support = Path(__file__).parent / "support"
    return bool(_NEEDS_TORCH.search(text)) or any(_needs_torch(support / f"{name}.py", seen | {script}) for name in names)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where torch is not installed, leave out what cannot be imported without it: `.ci/run` tests a second Python so."""
    if importlib.util.find_spec("torch") is not None:
        return None
    script = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    return True if script.suffix == ".py" and _needs_torch(script) else None


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Two workers share the whole suite, file by file, where pytest-xdist is installed and the command line names no paths.

    Not in `addopts`, where it would also start workers for a single file, and fail where pytest-xdist is not there.
    """
    option = config.option
    if not config.pluginmanager.has_plugin("xdist") or hasattr(config, "workerinput"):
        return
    if option.numprocesses is None and not (option.tx or option.file_or_dir or option.usepdb or option.capture == "no"):
        option.numprocesses = WORKERS if (os.cpu_count() or 1) > 1 else 0
    if option.numprocesses and option.dist == "no":  # fixtures of modules are made once, tests that measure a process stay in one
        option.dist = "loadfile"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    """Skip tests whose fixtures turn out to need torch where it is not installed."""
    return (yield from _skipped_without_torch())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Likewise for tests themselves."""
    return (yield from _skipped_without_torch())


def _skipped_without_torch() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "fsspec") or importlib.util.find_spec(error.name) is not None:  # torch brings fsspec
            raise
        pytest.skip(f"{error.name} is not installed")


def pytest_report_header() -> str | None:
    """Say so."""
    return None if importlib.util.find_spec("torch") else "torch is not installed: test files that need it are left out"


@pytest.fixture(scope="session", autouse=True)
def _coverage_of_threads() -> Iterator[None]:
    """Let coverage see threads that are not started by `threading`, if it works by tracing."""
    trace, start = threading.gettrace(), _thread.start_new_thread
    if trace is None:
        yield
        return

    def traced(function: Callable[..., object], arguments: tuple[Any, ...], *more: Any) -> int:
        def run(*given: Any, **named: Any) -> object:
            sys.settrace(trace)
            return function(*given, **named)

        return start(run, arguments, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", traced)
        yield


@pytest.fixture
def pack_of(tmp_path: Path) -> PackOf:
    from support.fixtures import PackOf

    return PackOf(tmp_path)


@pytest.fixture
def applied(tmp_path: Path) -> Applied:
    from support.fixtures import Applied

    return Applied(tmp_path)


@pytest.fixture
def merged(tmp_path: Path) -> Merged:
    from support.fixtures import Merged

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
