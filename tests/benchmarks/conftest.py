"""A tiny model with two fine-tunes, in a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.checkpoints import Llama
from benchmarks.speed.inputs import Bench, open_bench

TINY = Llama(hidden=256, layers=1, vocabulary=512)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DELTAPACK_BENCH", str(tmp_path_factory.mktemp("bench")))
        with open_bench(TINY, 2) as made:
            yield made
