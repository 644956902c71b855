"""Options of `compress` that say how large a pack may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from deltapack.cli.options import typed_options
from deltapack.cli.types import Choice
from deltapack.errors import RecipeError
from deltapack.packing.budget import QUALITIES, USUAL_QUALITY, Budget
from deltapack.packing.recipe import OF_DARE

__all__ = ["BUDGET_OPTIONS", "budget_of", "budget_options"]

Command = TypeVar("Command", bound=Callable[..., Any])
BUDGET_OPTIONS = ("target_size", "target_ratio", "target_bits", "quality")
"""Their names as parameters."""


def budget_options(command: Command) -> Command:
    """Add the options of a budget."""
    qualities = "; ".join(f"{name} is {row.text}" for name, row in QUALITIES.items())
    added = (
        click.option("--target-size", metavar="SIZE", help="How large the pack may be, everything counted, such as 50MB."),
        click.option("--target-ratio", type=float, metavar="X", help="Likewise: X times smaller than the fine-tune's tensors."),
        click.option("--target-bits", type=float, metavar="B", help="Likewise: B bits for each float element of the fine-tune."),
        click.option(
            "--quality",
            type=Choice(list(QUALITIES)),
            show_default=USUAL_QUALITY,
            help=f"A budget for the weights that has a name: {qualities}.",
        ),
    )
    for option in reversed(added):
        command = option(command)
    return command


def budget_of(size: str | None, ratio: float | None, bits: float | None, quality: str | None) -> Budget | None:
    """Return the budget that was typed, if one was.

    Raises:
        click.UsageError: Several were, or besides something that says how to drop, or it is out of range.
    """
    asked = typed_options(BUDGET_OPTIONS)
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(asked)} contradict each other: a pack has one size. Leave out all but one.")
    if not asked:
        return None
    dropping = typed_options(OF_DARE)
    if dropping:
        hint = "Leave out one of them; --set 'REGEX:drop-rate=0.9' drops from single tensors."
        raise click.UsageError(f"{dropping[0]} does nothing within a budget, which {asked[0]} is. {hint}")
    try:
        return Budget(size, ratio, bits, quality)
    except RecipeError as error:
        raise click.UsageError(f"Invalid value for '{asked[0]}': {error}") from error
