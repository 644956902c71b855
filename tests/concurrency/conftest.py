"""A base with packs, and the counts of what ran at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builders import moved, random_tensor, write_folder
from support.counts import counted, print_counts

import deltapack

_LABEL = "concurrency"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, fine-tunes `tuned-0` to `tuned-3` in several shards, and a pack of each."""
    folder = tmp_path_factory.mktemp("model")
    base = {f"layer.{number}": random_tensor(number, (120, 100)) for number in range(6)}
    write_folder(folder / "base", base, {"tokenizer.json": "{}"})
    for number in range(4):
        tuned = {name: moved(tensor, 7 + number) for name, tensor in base.items()}
        write_folder(folder / "whole", tuned, {"tokenizer.json": f'{{"a": {number}}}'})
        deltapack.compress(folder / "base", folder / "whole", folder / f"{number}.dpk", recipe=deltapack.Recipe(exact=True))
        for path in (folder / "whole").iterdir():
            path.unlink()
        (folder / "whole").rmdir()
        deltapack.apply(folder / "base", folder / f"{number}.dpk", folder / f"tuned-{number}", max_shard_size=100_000)
    return folder


@pytest.fixture
def tried(record_property: Any) -> Iterator[Counter[str]]:
    yield from counted(_LABEL, record_property)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    print_counts(_LABEL, terminalreporter)
