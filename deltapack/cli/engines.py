"""The options that say what does the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from deltapack.cli.options import typed_options
from deltapack.cli.types import Choice

__all__ = ["engine_options", "refuse_engine"]

F = TypeVar("F", bound=Callable[..., Any])


def engine_options(function: F) -> F:
    """Add `--engine` and `--address`."""
    engine = click.option(
        "--engine",
        type=Choice(["local", "ray"]),
        default="local",
        help="What does the work: threads here, or a Ray cluster (docs/cluster.md).",
    )
    address = click.option(
        "--address",
        metavar="A",
        help="Of the Ray cluster: auto, ray://HOST:PORT or HOST:PORT. Else RAY_ADDRESS; without it, one on this machine for the time.",
    )
    return engine(address(function))


def refuse_engine(option: str) -> None:
    """Refuse these options beside one with which a command only looks.

    Raises:
        click.UsageError: One was typed.
    """
    typed = typed_options(("engine", "address"))
    if typed:
        raise click.UsageError(f"{option} looks from this machine; {', '.join(typed)} would have no effect.")
