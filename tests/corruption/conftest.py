"""Packs of every codec, made once, and the counts of what was damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.counts import counted, print_counts
from support.damage import Family, families

_LABEL = "corruption"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Family]:
    return list(families(tmp_path_factory.mktemp("families")))


@pytest.fixture
def tried(record_property: Any) -> Iterator[Counter[str]]:
    yield from counted(_LABEL, record_property)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    print_counts(_LABEL, terminalreporter)
