"""The manual page, made of what `--help` shows: `python -m deltapack.cli.manual > deltapack.1`, for those who package deltapack."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from deltapack._version import __version__
from deltapack.cli.main import EPILOG, cli

__all__ = ["manual"]


def manual() -> str:
    """Return the page in roff (man macros): every command with its arguments and options, exit codes, environment."""
    context = click.Context(cli, info_name="deltapack")
    commands = [(name, cli.get_command(context, name)) for name in cli.list_commands(context)]
    lines = [
        f'.TH DELTAPACK 1 "" "deltapack {__version__}" "User Commands"',
        ".SH NAME",
        r"deltapack \- fine-tunes as small packs over their base model",
        ".SH SYNOPSIS",
        ".B deltapack",
        r".I command\/",
        r"[\fIoptions\fR] \fIarguments\fR",
        ".SH DESCRIPTION",
        *_paragraphs(cli.help or ""),
        ".SH COMMANDS",
    ]
    for name, command in commands:
        if command is not None:
            lines += _command(name, command, context)
    codes, _, _ = EPILOG.partition("Every command")
    lines += [".SH EXIT STATUS", ".nf", *map(_escaped, codes.strip().removeprefix("\b\nExit codes:\n").splitlines()), ".fi"]
    lines += [".SH ENVIRONMENT"]
    for variable, text in _ENVIRONMENT.items():
        lines += [".TP", f".B {variable}", _escaped(text)]
    return "\n".join([*lines, ".SH SEE ALSO", "https://github.com/deltapack/deltapack"]) + "\n"


_ENVIRONMENT = {
    "NO_COLOR": "If it is set, nothing is coloured.",
    "FORCE_COLOR": "If it is set, tables are coloured also where the output is no terminal.",
    "COLUMNS": "The width of the terminal, in place of the one that the system tells.",
    "DELTAPACK_LOOPS": "Which loops compute on the CPU: numba, numpy, or auto, which takes numba where there is more than a little to do.",
    "NUMBA_CACHE_DIR": "Where compiled loops are kept.",
    "HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE": "What they mean for hf, wherever the Hugging Face Hub is asked.",
    "RAY_ADDRESS": "The cluster of --engine ray, where --address names none.",
}


def _command(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f'.SS "deltapack {_escaped(name)} {_escaped(usage)}"'
    yield from _paragraphs(command.help or "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # arguments are told in the text
            yield from (".TP", f"\\fB{_escaped(record[0])}\\fR", _escaped(" ".join(record[1].split())))


def _paragraphs(text: str) -> Iterator[str]:
    r"""Yield paragraphs; one that begins with `\b` keeps its lines, as in the help."""
    for part in re.split(r"\n\s*\n", text.strip()):
        yield ".PP"
        lines = part.strip("\n").splitlines()
        if lines[0].strip() == "\b":
            yield from (".nf", *(_escaped(line) for line in lines[1:]), ".fi")
        else:
            yield _escaped(" ".join(line.strip() for line in lines))


def _escaped(text: str) -> str:
    r"""Return text that roff takes for text: no escapes, no hyphens that break, no requests at the start of a line.

    >>> print(_escaped("--a-b\\c"))
    \-\-a\-b\ec
    """
    told = text.replace("\\", "\\e").replace("-", r"\-").replace('"', r"\(dq")
    return rf"\&{told}" if told[:1] in (".", "'") else told


if __name__ == "__main__":
    click.echo(manual(), nl=False)
