"""What a shell and a manual show: completion scripts that work, a manual page that is one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support.commands import Run

import deltapack
from deltapack.cli.commands.completion import SHELLS
from deltapack.cli.main import COMMANDS, cli
from deltapack.cli.manual import manual

TYPED = {"bash": "bash_complete", "zsh": "zsh_complete", "fish": "fish_complete"}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with the program, as an installation has it."""
    script = tmp_path / "bin" / "deltapack"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deltapack "$@"\n')
    script.chmod(0o755)
    return script.parent


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_for_its_shell_and_asks_the_program(shell: str, run: Run, tmp_path: Path) -> None:
    done = run("completion", shell)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"_DELTAPACK_COMPLETE={TYPED[shell]}" in done.stdout
    assert {"bash": "complete -o nosort", "zsh": "#compdef deltapack", "fish": "complete --no-files --command deltapack"}[
        shell
    ] in done.stdout
    script = tmp_path / "script"
    script.write_text(done.stdout)
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True)


def test_bash_completes_by_it(run: Run, program: Path, tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    script = tmp_path / "script"
    script.write_text(run("completion", "bash").stdout)
    ask = (
        f"source {script}; COMP_WORDS=(deltapack comp); COMP_CWORD=1; _deltapack_completion deltapack; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    environment = os.environ | {"PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["compress", "completion"]


@pytest.mark.parametrize("shell", SHELLS)
def test_what_a_shell_asks_is_answered(shell: str, program: Path) -> None:
    told = {"COMP_WORDS": "deltapack completion ", "COMP_CWORD": "" if shell == "fish" else "2", "_DELTAPACK_COMPLETE": TYPED[shell]}
    done = subprocess.run([program / "deltapack"], env=os.environ | told, capture_output=True, text=True, check=False)
    assert all(name in done.stdout for name in SHELLS), done.stderr


def test_a_wrong_shell_is_told_which_there_are(run: Run) -> None:
    done = run("completion", "csh")
    assert done.exit_code == 2 and all(shell in done.stderr for shell in SHELLS)


def options_of() -> Iterator[tuple[str, str]]:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield name, max(parameter.opts, key=len)


def test_the_manual_has_every_command_and_option() -> None:
    sections = manual().split('.SS "deltapack ')[1:]
    assert [section.split()[0].strip('"').replace("\\-", "-") for section in sections] == list(COMMANDS)
    by_name = dict(zip(COMMANDS, sections, strict=True))
    missing = [(name, option) for name, option in options_of() if option.replace("-", r"\-") not in by_name[name]]
    assert not missing


def test_the_manual_has_the_variables_that_are_read() -> None:
    package = Path(deltapack.__file__).parent
    read = {name for path in package.rglob("*.py") for name in re.findall(r"\"(DELTAPACK_[A-Z]+)\"", path.read_text("utf-8"))}
    environment = manual().partition(".SH ENVIRONMENT")[2]
    assert read and all(name in environment for name in {*read, "HF_TOKEN", "RAY_ADDRESS", "NO_COLOR"})


def test_the_manual_has_no_line_that_roff_takes_for_a_request() -> None:
    known = (".TH", ".SH", ".SS", ".PP", ".TP", ".B ", ".I ", ".nf", ".fi")
    odd = [line for line in manual().splitlines() if line.startswith((".", "'")) and not line.startswith(known)]
    assert not odd and "\\b" not in manual().replace("\\bin", "")


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_groff_sets_it_without_a_warning(tmp_path: Path) -> None:
    page = tmp_path / "deltapack.1"
    page.write_text(manual(), "utf-8")
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", "-Kutf8", "-P-cbou", page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "EXIT STATUS" in done.stdout and "--target-size SIZE" in done.stdout
