"""What the disk fails to give at a moment is an error, and never counts as what is not there."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltapack.checkpoint.manifest import MANIFEST, check_own, manifest_of
from deltapack.checkpoint.sidefiles import list_side_files
from deltapack.cli import main as command
from deltapack.errors import CheckpointError
from deltapack.format.atomic import fsync_tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("config.json", "sub/config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, int], None]]:
    """Have a function of `os` fail for paths that end so."""

    def failing(function: str, ending: str, code: int) -> None:
        original = getattr(os, function)

        def call(path: Any, *more: Any, **named: Any) -> Any:
            if isinstance(path, str | os.PathLike) and os.fspath(path).endswith(ending):
                raise OSError(code, os.strerror(code), os.fspath(path))
            return original(path, *more, **named)

        monkeypatch.setattr(os, function, call)

    yield failing
    monkeypatch.undo()


Refuse = Callable[[str, str, int], None]


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize(("function", "ending"), [("stat", "sub/config.json"), ("listdir", "sub")])
def test_side_files(function: str, ending: str, code: int, folder: Path, refuse: Refuse) -> None:
    refuse(function, ending, code)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        list_side_files(folder, False)
    assert str(caught.value.path).endswith(ending)


@pytest.mark.parametrize(("function", "ending"), [("stat", "sub/config.json"), ("listdir", "sub")])
def test_side_files_that_are_not_for_this_user_are_left_out_and_told(function: str, ending: str, folder: Path, refuse: Refuse) -> None:
    refuse(function, ending, errno.EACCES)
    files, left = list_side_files(folder, False)
    assert [file.name for file in files] == ["config.json"] and [item.name.rstrip("/") for item in left] == [ending]


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_ours(code: int, folder: Path, refuse: Refuse) -> None:
    """What others wrote there would be removed unseen."""
    (folder / MANIFEST).write_bytes(manifest_of(folder, "checkpoint"))
    (folder / "sub" / "notes.txt").write_text("mine")
    refuse("scandir", "sub", code)
    with pytest.raises(OSError, match=os.strerror(code)):
        check_own(folder, "checkpoint")
    with pytest.raises(OSError, match=os.strerror(code)):
        fsync_tree(folder)


def test_an_interrupt_before_a_command_begins_ends_as_any_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.cli, "make_context", interrupted)
    monkeypatch.setattr("sys.argv", ["deltapack", "inspect", "x.dpk"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    monkeypatch.setattr(command, "prepare_streams", lambda: None)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 130 and "Interrupted." in capsys.readouterr().err
