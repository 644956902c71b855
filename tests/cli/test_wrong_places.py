"""Every path that the command line takes, given something that is no such file: an error at once, never a wait, never a traceback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from support.commands import Pair

from deltapack.cli.main import cli
from deltapack.cli.types import CheckpointPath, OutPath, PackPath

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo") or not Path("/dev/zero").exists(), reason="needs named pipes and devices")

SECONDS = 30
"""By the clock, where a test that works takes a tenth of one."""
KINDS = ("fifo", "device", "empty folder", "folder of text", "long name", "long path", "text", "fifo inside")
ONLY_INPUTS = ("empty folder", "folder of text", "text", "fifo inside")
"""What an output may be called, or replaced with."""
SERVED = {("serve-files",), ("mount",)}
"""Commands that begin to serve any folder, which is right."""


def commands(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command of the tree, by the words that call it."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands(found, (*path, name))


def takes_a_path(parameter: click.Parameter) -> bool:
    return isinstance(parameter.type, click.Path)


@dataclass(frozen=True)
class Place:
    """A parameter of a command that takes a path."""

    command: tuple[str, ...]
    parameter: str
    is_output: bool


def places() -> list[Place]:
    found = []
    for words, command in commands():
        for parameter in filter(takes_a_path, command.params):
            assert parameter.name is not None
            is_output = isinstance(parameter.type, OutPath) or parameter.name in ("out", "html")
            found.append(Place(words, parameter.name, is_output))
    return found


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> dict[str, str]:
    """What is no model, no pack and no text, by kind."""
    folder = tmp_path_factory.mktemp("wrong")
    os.mkfifo(folder / "pipe.dpk")
    (folder / "empty").mkdir()
    (folder / "text").mkdir()
    (folder / "text" / "notes.txt").write_text("nothing\n")
    (folder / "short.bin").write_text("no weights, no pack")
    inside = folder / "inside"
    shutil.copytree(pair.base, inside)
    (inside / "model.safetensors").unlink()
    for name in ("model.safetensors", "config.json", "pack.dpk", "recipe.yaml", "adapter_config.json", "README.md"):
        (inside / name).unlink(missing_ok=True)
        os.mkfifo(inside / name)
    return {
        "fifo": f"{folder}/pipe.dpk",
        "device": "/dev/zero",
        "empty folder": f"{folder}/empty",
        "folder of text": f"{folder}/text",
        "long name": f"{folder}/{'n' * 300}.dpk",
        "long path": "/".join([str(folder), *["d" * 200] * 30, "x.dpk"]),
        "text": f"{folder}/short.bin",
        "fifo inside": f"{inside}",
    }


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail instead of waiting, as for a pipe that nobody writes to."""

    def stop(*_: object) -> None:
        pytest.fail(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def arguments(place: Place, given: str, pair: Pair, folder: Path) -> list[str]:
    """Return a call of a command that works but for one parameter."""
    command = dict(commands())[place.command]
    words = list(place.command)
    for parameter in command.params:
        value = given if parameter.name == place.parameter else usual(parameter, pair, folder)
        needed = parameter.required or parameter.name in (place.parameter, "out", "packs", *(("base",) if "watch" in words else ()))
        if not needed or value is None:
            continue
        words += [value] if isinstance(parameter, click.Argument) else [parameter.opts[0], value]
    return words


def usual(parameter: click.Parameter, pair: Pair, folder: Path) -> str | None:
    """Return a value that works."""
    if isinstance(parameter.type, OutPath) or parameter.name == "out":
        return f"{folder}/out.dpk"
    if isinstance(parameter.type, CheckpointPath):
        return str(pair.finetuned if parameter.name == "finetuned" else pair.base)
    if isinstance(parameter.type, PackPath) or parameter.name == "pack":
        return str(pair.pack)
    named: dict[str | None, Any] = {"packs": pair.pack, "paths": pair.pack, "folder": folder, "repo": "me/model", "mountpoint": folder}
    return str(named[parameter.name]) if parameter.name in named else None


@pytest.mark.parametrize("place", places(), ids=lambda place: "-".join((*place.command, place.parameter)))
@pytest.mark.parametrize("kind", KINDS)
def test_something_else_is_told_at_once(kind: str, place: Place, pair: Pair, wrong: dict[str, str], tmp_path: Path) -> None:
    if place.is_output and kind in ONLY_INPUTS:
        pytest.skip("an output may be there, or be called so")
    if place.command in SERVED and place.parameter in ("packs", "mountpoint") and kind in ONLY_INPUTS and kind != "text":
        pytest.skip("a folder is served as it is")
    if kind == "text" and place.parameter in ("card", "text"):
        pytest.skip("a text is right here")
    words = arguments(place, wrong[kind], pair, tmp_path)
    with at_most(SECONDS):
        result = CliRunner().invoke(cli, words, prog_name="deltapack")
    assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
    assert result.exit_code in (1, 2, 3, 4, 5, 6), (words, result.output)
    assert ("Error" in result.output or "Damaged" in result.output) and "Traceback" not in result.output
