"""A web server of this machine, and networks that give up soon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.web_server import WebServer, web_server

from deltapack.sources import retrying, stores


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waits are short, and nothing is known of what was there before."""
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(retrying, "STALL_SECONDS", 0.3)
    stores.forget()
    yield
    stores.forget()


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A server without files."""
    pytest.importorskip("urllib3")
    with web_server() as server:
        yield server
