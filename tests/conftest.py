"""Let tests import `support`, `vectors` and `benchmarks`, whatever folder pytest was started in."""

from __future__ import annotations

import _thread
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

if TYPE_CHECKING:
    from support.builders import Model, Tensor

# No test asserts a time, so no example has a deadline: machines are busy, and coverage makes everything slower.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")

_NEEDS_TORCH = re.compile(
    r"^(import torch|from torch|from deltapack\.(demo|device|live)|from support\.(builders|device_packs|vocabularies)|"
    r"from support import .*(builders|device_packs|vocabularies))",
    re.M,
)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where torch is not installed, leave out what cannot be imported without it: `.ci/run` tests a second Python so."""
    if importlib.util.find_spec("torch") is not None:
        return None
    script = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    return True if script.suffix == ".py" and script.is_file() and _NEEDS_TORCH.search(script.read_text("utf-8")) else None


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
        if error.name != "torch" or importlib.util.find_spec("torch") is not None:
            raise
        pytest.skip("torch is not installed")


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
def pack_of(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes base and fine-tune as bare files and compresses them to `<name>.dpk`."""

    def make(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], name: str = "pack", *, force: bool = False, **recipe: Any) -> Path:
        from support import builders

        import deltapack

        builders.write_file(tmp_path / "base.safetensors", base)
        builders.write_file(tmp_path / f"{name}.safetensors", tuned)
        options = {key: recipe.pop(key) for key in ("name_map", "workers") if key in recipe}
        deltapack.compress(
            tmp_path / "base.safetensors",
            tmp_path / f"{name}.safetensors",
            tmp_path / f"{name}.dpk",
            recipe=deltapack.Recipe(**recipe),
            force=force,
            **options,
        )
        return tmp_path / f"{name}.dpk"

    return make


@pytest.fixture
def applied(tmp_path: Path) -> Callable[..., Model]:
    """Return a function that applies a pack to the base of `pack_of` and reads what came out."""

    def restore(pack: Path, **options: Any) -> Model:
        from support import builders

        import deltapack

        out = tmp_path / "out.safetensors"
        deltapack.apply(tmp_path / "base.safetensors", pack, out, force=True, **options)
        return builders.read_model(out)

    return restore


@pytest.fixture
def merged(tmp_path: Path) -> Callable[..., Model]:
    """Return a function that merges packs onto the base of `pack_of` and reads what came out."""

    def restore(packs: list[Path], **options: Any) -> Model:
        from support import builders

        import deltapack

        out = tmp_path / "merged.safetensors"
        deltapack.merge(tmp_path / "base.safetensors", packs, out, force=True, **options)
        return builders.read_model(out)

    return restore
