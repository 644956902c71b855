"""Small checkpoint files, good and bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def raw_safetensors(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a safetensors file from a header (an object or bytes) and data, unchecked."""

    def write(header: object, data: bytes = b"", name: str = "model.safetensors") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        return path

    return write
