"""One backend after the other, as far as this machine has them."""

from __future__ import annotations

import pytest
import support.interpreting  # noqa: F401
from support.backends import BACKENDS, load

from deltapack.kernels import Backend


@pytest.fixture(params=BACKENDS)
def loops(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)
