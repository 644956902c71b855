"""Types of arguments and options: what is typed is looked at before any work, and a wrong word gets the nearest right one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from deltapack.checking import as_checkpoint, as_pack, as_path, pack_exists
from deltapack.errors import BackendError, DeltapackError, RecipeError, did_you_mean
from deltapack.kinds import check_output_name, hub_hint, kind_of_path, pack_hint

__all__ = ["CheckpointPath", "Choice", "OutPath", "PackOrFolder", "PackOrRun", "PackPath", "Suggested", "WeightFiles"]


class Choice(click.Choice[str]):
    """A choice that says which word was probably meant."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return what is wrong with a word."""
        near = did_you_mean(value, map(str, self.choices))
        return super().get_invalid_choice_message(value, ctx) + (f" {near}" if near else "")


class WeightFiles(Choice):
    """Which weight files count; a number was meant for `--weight`."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return what is wrong with a word."""
        told = super().get_invalid_choice_message(value, ctx)
        return told + (" Factors of packs are --weight." if re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?(,.*)?", str(value)) else "")


class Suggested(click.types.StringParamType):
    """Any text; the shell completes the words that are known."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the words that begin as what was typed."""
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class CheckpointPath(click.Path):
    """A folder or file that must exist; a name of the Hub is told from a path."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if os.path.exists(value):
            return super().convert(value, param, ctx)
        path, told, why = _elsewhere(value, as_checkpoint)
        if path is None or not path.exists():
            hint = "Is the address right?" if ":/" in told else hub_hint(told)
            self.fail(f"Path '{told}' does not exist.{why} {hint}", param, ctx)
        return path


class PackPath(click.Path):
    """A file that must exist; what is plainly no pack is told before any work."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        here = os.path.exists(value)
        path, told, why = (Path(value), value, "") if here else _elsewhere(value, as_pack)
        if path is None or not (here or pack_exists(path)):
            self.fail(f"File '{told}' does not exist.{why}{_near(told) or _on_the_hub(told)}", param, ctx)
        if path.is_dir():
            self.fail(f"'{told}' is a folder, and a pack is a .dpk file.{_way_out(param, ctx, told)}", param, ctx)
        return super().convert(value, param, ctx) if here else path


class PackOrAdapter(PackPath):
    """A pack, or the folder of an adapter."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if os.path.isfile(os.path.join(value, "adapter_config.json")):
            return Path(value)
        if os.path.isfile(os.path.join(value, "config.json")) and ctx is not None and ctx.params.get("base"):
            made = f"deltapack compress '{ctx.params['base']}' '{value}' -o '{Path(os.path.abspath(value)).name}.dpk'"
            self.fail(f"'{value}' is a folder, and a pack is a .dpk file. Of a whole model {made} makes one.", param, ctx)
        return super().convert(value, param, ctx)


class PackOrRun(PackPath):
    """A pack; with an option `--step` that comes first, a folder of packs."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        has_step = ctx is not None and isinstance(ctx.params.get("step"), int)
        if has_step and os.path.isdir(value):
            return Path(value)
        if os.path.isdir(value) and any(Path(value).glob("*.dpk")):
            self.fail(
                f"'{value}' is a folder of packs. Name the packs of a chain, or with --step N the step of a training run.", param, ctx
            )
        return super().convert(value, param, ctx)


class PackOrFolder(click.Path):
    """A pack, or a folder of packs, that must exist."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if os.path.exists(value):
            return super().convert(value, param, ctx)
        path, told, why = _elsewhere(value, as_pack)
        if path is None or not pack_exists(path):
            self.fail(f"'{told}' does not exist.{why}{_near(told) or _on_the_hub(told)}", param, ctx)
        return path


class OutPath(click.Path):
    """An output; a name that says something else than what is written is refused."""

    def __init__(self, what: str) -> None:
        super().__init__(path_type=Path)
        self.what = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if not str(value):
            self.fail("The name is empty.", param, ctx)
        try:
            check_output_name(value, self.what)
        except RecipeError as error:
            self.fail(f"{error}", param, ctx)
        return as_path("the output", value) if "://" in str(value) else super().convert(value, param, ctx)


def _elsewhere(value: Any, find: Callable[[str, object], Path]) -> tuple[Path | None, str, str]:
    """Return where something is that is not here, and how it is called; none where nobody knows the name, with what the Hub said.

    Raises:
        DeltapackError: It is an address, and cannot be read.
    """
    try:
        path = find("path", value)
    except DeltapackError as error:
        if ":/" in str(value):
            raise
        said = str(type(error)(error.what, expected=error.expected, found=error.found)).rstrip(".")
        return None, str(value), "" if isinstance(error, BackendError) else f" {said[0].upper()}{said[1:]}."
    return path, str(path) if ":/" in str(value) else str(value), ""


def _near(value: str) -> str:
    """Say which pack of the folder may be meant."""
    folder, name = os.path.split(value)
    try:
        packs = sorted(entry for entry in os.listdir(folder or ".") if entry.endswith(".dpk"))
    except OSError:
        return ""
    near = did_you_mean(name, packs)
    return f" {near}" if near else ""


def _on_the_hub(value: Any) -> str:
    hint = pack_hint(value)
    return f" {hint}" if hint else ""


def _way_out(param: click.Parameter | None, ctx: click.Context | None, value: object) -> str:
    """Say what to name in place of a folder."""
    if isinstance(param, click.Option):
        flag = max(param.opts, key=len)
        return f" Name its packs, each after its own option: {flag} A.dpk {flag} B.dpk."
    return _swapped(ctx, value)


def _swapped(ctx: click.Context | None, value: object) -> str:
    """Say so where base and pack seem to have changed places."""
    named = next((param for param in ctx.command.params if param.name == "base"), None) if ctx is not None else None
    if ctx is not None and not isinstance(named, click.Argument):
        return "" if named is None else " A base is named by --base."
    base = (ctx.params if ctx is not None else {}).get("base")
    if not isinstance(base, Path) or not base.is_file():
        return " Where a base is given, too, it comes before the pack."
    kind = kind_of_path(base)
    if kind is None or kind.name != "pack":
        return " The base comes before the pack."
    return f" Base and pack have changed places: give '{value}' before '{base}'."
