"""The three streams of a process, made such that a command works whatever they lead to.

A stream that is closed (`2>&-`) leaves its number to the next file that is opened, and whatever writes a message there damages that file.
What cannot be told to people, as standard error leads to a full disk or to a reader that has gone, ends no work.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import click

__all__ = ["Teller", "forget_stdout", "forget_unwritten", "prepare_streams"]


class _Patient(io.FileIO):
    """Standard error that takes everything, whether somebody gets it or not."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class Teller:
    """Prints lines while work goes on that matters more than they do: what nobody takes is told at the end."""

    def __init__(self) -> None:
        self._lost: OSError | None = None

    def __call__(self, text: str) -> None:
        """Print a line, where earlier ones were taken."""
        if self._lost is None:
            try:
                click.echo(text)
            except OSError as error:
                self._lost = error
                forget_stdout()

    def end(self) -> None:
        """Raise what kept a line from being printed.

        Raises:
            OSError: As the system said.
        """
        if self._lost is not None:
            raise self._lost


def prepare_streams() -> None:
    """Let what is closed lead nowhere, write what the encoding of a stream lacks as escapes, and have standard error never fail."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names need not fit the terminal's encoding
    if sys.stderr is None or isinstance(sys.stderr, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stderr is None else sys.stderr.encoding
        raw = io.BufferedWriter(_Patient(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)


def forget_unwritten() -> None:
    """Drop what standard output does not take, which Python would try to write again at exit, and end with a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        forget_stdout()


def forget_stdout() -> None:
    """Point standard output to nowhere: whoever read it has gone, or it is full, and Python would complain of that at exit."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except io.UnsupportedOperation:  # a test's buffer
        return
