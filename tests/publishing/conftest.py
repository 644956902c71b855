"""A Hub on this machine with a base, and a pack of a fine-tune of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub import Hub, asks, served
from support.publishing import Pair, make_pair, with_base


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Pair]:
    """Make a pair; `card` is that of the fine-tune."""

    def make(card: str | None = None, *, name: str = "math", **options: Any) -> Pair:
        return make_pair(tmp_path / name, card, **options)

    return make


@pytest.fixture
def pair(made: Callable[..., Pair]) -> Pair:
    return made()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Waits between two tries of huggingface_hub are left out."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with served() as hub:
        asks(monkeypatch, hub, tmp_path / "cache")
        yield hub


@pytest.fixture
def filled(hub: Hub, pair: Pair) -> Hub:
    """It has the base as `org/base`."""
    return with_base(hub, pair)
