"""Every limit of `deltapack.limits` that a pack can reach: at the limit a pack opens, one below it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deltapack.errors import DeltapackError, FormatError, LimitError
from deltapack.format.reader import PackReader
from deltapack.limits import DEFAULT_LIMITS

VECTORS = Path(__file__).resolve().parent.parent / "vectors"


@pytest.mark.parametrize(
    ("vector", "limit", "reached", "error"),
    [
        ("example", "index_bytes", 580, LimitError),
        ("example", "tensors", 1, LimitError),
        ("example", "numel", 3, LimitError),
        ("example", "ndim", 1, LimitError),
        ("example", "terms", 1, LimitError),
        ("example", "name_bytes", 1, FormatError),
        ("example", "json_depth", 6, FormatError),
        ("kind-removed", "numel", 12, LimitError),
        ("kind-removed", "ndim", 2, LimitError),
        ("bounds-terms", "terms", 64, LimitError),
        ("files", "side_files", 5, LimitError),
        ("files", "side_file_bytes", 500, LimitError),
        ("files", "side_files_bytes", 522, LimitError),
        ("bounds-files", "name_bytes", 512, FormatError),
    ],
)
def test_limit_is_the_last_that_passes(vector: str, limit: str, reached: int, error: type[DeltapackError]) -> None:
    path = VECTORS / f"v1-ok-{vector}.dpk"
    PackReader(path, replace(DEFAULT_LIMITS, **{limit: reached})).close()
    with pytest.raises(error):
        PackReader(path, replace(DEFAULT_LIMITS, **{limit: reached - 1}))
