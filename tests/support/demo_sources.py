"""A model of a few kilobytes for the demo, and sources to learn from."""

from __future__ import annotations

from pathlib import Path

from deltapack.demo.model import ModelSize

TINY = ModelSize(layers=1, width=32, heads=2, inner=64, context=32)


def write_sources(folder: Path, count: int) -> None:
    """Write modules of about 2,000 characters of code and 1,600 of docstrings each."""
    folder.mkdir(parents=True)
    for number in range(count):
        docstring = f"Return value {number}, as the manual of {folder.name} says it should be returned. " * 4
        functions = [f'def f{k}(x):\n    """{docstring}"""\n    return x * {k} + {number}\n' for k in range(5)]
        constants = [f"{folder.name.upper()}_{number}_{k} = {k * number}" for k in range(90)]
        (folder / f"m{number}.py").write_text("\n".join([*functions, *constants]) + "\n", "utf-8")
