"""`deltapack demo`: how it is called, and that the commands it prints are commands of this program."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from support.commands import Run

from deltapack.cli.main import cli
from deltapack.demo import flow
from deltapack.demo.render import commands


def report(folder: Path) -> flow.DemoReport:
    merged = ("code-drop0.9.dpk", "prose-drop0.9.dpk")
    rows = (
        flow.Row("base", "base", 1000, {"code": 4.0, "prose": 4.0}, {}),
        flow.Row("code-drop0.9.dpk", "pack", 100, {"code": 3.0}, {"code": 0.9}),
    )
    return flow.DemoReport(folder, rows, 10, 0.6, merged, 1.0, 1.0, 1.0)


def test_options_and_output(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def run_demo(folder: Path, *, echo: Any, progress: Any, workers: int | None, force: bool) -> flow.DemoReport:
        calls.append((folder, progress, workers, force))
        if echo is not None:
            echo("a stage\x1b")
        return report(folder)

    monkeypatch.setattr(flow, "run_demo", run_demo)
    result = run("demo")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "a stage\\x1b\n"
    assert "code-drop0.9.dpk" in result.stdout
    quiet = run("demo", "--out", tmp_path, "--force", "--workers", "2", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    as_json = run("demo", "--out", tmp_path, "--json")
    assert json.loads(as_json.stdout)["rows"][1]["retention"] == {"code": 0.9}
    assert calls == [
        (Path("deltapack-demo"), None, None, False),
        (tmp_path, None, 2, True),
        (tmp_path, None, None, False),
    ]


def test_the_commands_it_prints_are_understood(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for name in ("base", "code-finetuned", "prose-finetuned"):
        (folder / name).mkdir(parents=True)
    for name in ("demo/code-drop0.9.dpk", "demo/prose-drop0.9.dpk", "demo-my.dpk"):
        (tmp_path / name).touch()
    for line in commands(report(folder)):
        program, name, *arguments = shlex.split(line)
        command = cli.get_command(click.Context(cli), name)
        assert program == "deltapack" and command is not None
        command.make_context(name, arguments)
