"""One backend after the other, as far as this machine has them."""

from __future__ import annotations

import interpreting  # noqa: F401
import pytest
from backends import BACKENDS, load

from deltapack.kernels import Backend


@pytest.fixture(params=BACKENDS)
def loops(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)
