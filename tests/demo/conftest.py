"""A demo run of a few seconds, on sources made up here: what it learns does not matter, that it is complete does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.demo_sources import TINY, write_sources

from deltapack.demo.corpus import Folders
from deltapack.demo.flow import DemoReport, DemoSize, run_demo
from deltapack.demo.training import Schedule


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Three small packages in place of the standard library, torch and numpy."""
    root = tmp_path_factory.mktemp("sources")
    write_sources(root / "library", 24)
    write_sources(root / "torch" / "nn", 24)
    write_sources(root / "numpy", 24)
    return Folders(root / "library", root / "torch", root / "numpy")


@pytest.fixture(scope="session")
def demo_size() -> DemoSize:
    """The smallest demo that still makes all its rows."""
    return DemoSize(
        text_bytes=36_000,
        model=TINY,
        base=Schedule(steps=12, rate=0.02, matrix_rate=0.03),
        fine_tune=Schedule(steps=10, rate=2e-3),
        windows=8,
        drop_rates=(0.5, 0.9),
    )


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory, sources: Folders, demo_size: DemoSize) -> DemoReport:
    """One finished run."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return run_demo(out, workers=1, size=demo_size, sources=sources)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny operations on many threads wait for each other more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
