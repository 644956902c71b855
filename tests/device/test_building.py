"""Configs that ask for models without end are refused before transformers reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltapack.device import building
from deltapack.device.building import read_sizes
from deltapack.errors import LimitError


def test_a_config_that_is_too_long_to_be_checked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_LARGEST", 40)
    (tmp_path / "config.json").write_text('{"hidden_size": 8}' + " " * 22)
    assert read_sizes(tmp_path) == {"hidden_size": 8}
    (tmp_path / "config.json").write_text('{"hidden_size": 8}' + " " * 23)
    with pytest.raises(LimitError, match=r"config\.json is too large: expected at most 40 bytes"):
        read_sizes(tmp_path)


@pytest.mark.parametrize("text", [None, "", "{", "[" * 100_000])
def test_what_cannot_be_read_is_for_transformers_to_tell(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert read_sizes(tmp_path) == {}
