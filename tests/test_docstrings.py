"""Examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import deltapack

ROOT = Path(deltapack.__file__).parent
WITH_EXAMPLES = sorted(path.relative_to(ROOT.parent) for path in ROOT.rglob("*.py") if ">>> " in path.read_text("utf-8"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_the_examples_give_what_they_say(path: Path) -> None:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    if name.startswith("deltapack.device."):
        pytest.importorskip("torch")
    module = importlib.import_module(name)
    found = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    assert found, "an example that doctest does not find is not run"
    for test in found:
        report: list[str] = []
        failed, tried = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
        assert tried and not failed, "".join(report)


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) >= 8
