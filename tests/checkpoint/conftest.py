"""Small checkpoint files, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.headers import RawSafetensors


@pytest.fixture
def raw_safetensors(tmp_path: Path) -> RawSafetensors:
    return RawSafetensors(tmp_path)
