"""The command line inside the test, and a stand-in for what it calls."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import deltapack
from deltapack.cli.main import cli


@dataclass(frozen=True)
class Pair:
    """Two checkpoint folders and the pack between them."""

    base: Path
    finetuned: Path
    pack: Path
    report: deltapack.CompressReport


class Run:
    """Runs the command line with these arguments."""

    def __call__(self, *args: object) -> Result:
        result = CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="deltapack")
        raise_without_torch(result)
        return result


def raise_without_torch(result: Result) -> None:
    """Raise what a command told that needs torch where it is not installed: tests/conftest.py skips the test."""
    if importlib.util.find_spec("torch") is None and "this needs torch, which cannot be imported" in result.output:
        raise ModuleNotFoundError(result.output, name="torch")


class Recorder:
    """Stands in for a use case: remembers how it was called, and returns or raises what it was given."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        self.args, self.kwargs = args, kwargs
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@dataclass(frozen=True)
class StandIn:
    """Replaces a public use case by a recorder with this outcome."""

    patch: pytest.MonkeyPatch

    def __call__(self, name: str, outcome: object) -> Recorder:
        recorder = Recorder(outcome)
        self.patch.setattr(deltapack, name, recorder)
        return recorder
