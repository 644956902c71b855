"""Fixtures of all tests; pytest finds `support`, `vectors` and `benchmarks` by `pythonpath` in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fixtures import Applied, Merged, PackOf


@pytest.fixture
def pack_of(tmp_path: Path) -> PackOf:
    return PackOf(tmp_path)


@pytest.fixture
def applied(tmp_path: Path) -> Applied:
    return Applied(tmp_path)


@pytest.fixture
def merged(tmp_path: Path) -> Merged:
    return Merged(tmp_path)
