"""The command line: `python -m fuzz --help`."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fuzz.environment import CACHE, prepare

if TYPE_CHECKING:
    from fuzz.protocol import Target


def main(arguments: list[str] | None = None) -> int:
    """Run a target; return 1 where something was found."""
    options = _parser().parse_args(arguments)
    prepare(bounds=not options.no_bounds)
    if options.atheris:
        from fuzz.atheris_engine import instrumented

        with instrumented():
            _targets()
    targets = _targets()
    names = fnmatch.filter(targets, "*" if options.target == "all" else options.target)
    if not names:
        print(f"no such target: {options.target}; there are {', '.join(targets)}", file=sys.stderr)
        return 2
    if options.atheris and len(names) > 1:
        print("atheris takes one target a process", file=sys.stderr)
        return 2
    from fuzz.commands import command

    return max(command(targets[name], options) for name in names)


def _targets() -> Mapping[str, Target]:
    """Imported only when the environment is as it must be."""
    from fuzz.targets import TARGETS

    return TARGETS


def _file(name: str) -> Path:
    if not os.path.isfile(name):
        raise argparse.ArgumentTypeError(f"there is no file {name!r}")
    return Path(name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m fuzz", description="Fuzz deltapack.")
    add = parser.add_argument
    add("target", help="a target, several by a pattern ('codec-*'), or all")
    add("--runs", type=int, default=200, help="inputs, beside the seeds (200)")
    add("--seconds", type=float, default=0, help="seconds of CPU instead of a number of inputs")
    add("--seed", type=int, default=0, help="where chance starts (0)")
    add("--atheris", action="store_true", help="guided by coverage; pip install atheris")
    add("--replay", type=_file, action="append", help="run this input alone; may be repeated")
    add("--coverage", action="store_true", help="run seeds and --runs kept inputs, tell how many lines of the target's modules they reach")
    add("--corpus", type=Path, default=None, help=f"where inputs are kept between runs (with --seconds: {CACHE / 'corpus'})")
    add("--found", type=Path, default=Path(tempfile.gettempdir()) / "deltapack-fuzz", help="where findings go")
    add("--no-bounds", action="store_true", help="compiled loops as users run them, without checks of addresses")
    add("--table", type=Path, help="append a line of figures to this file of CSV")
    add("--labels", action="store_true", help="print what inputs came to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
