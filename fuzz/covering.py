"""Which lines of a target's modules its inputs reach: a fuzzer that stops at the first check reaches few."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import coverage

from fuzz.bundles import Bundle
from fuzz.protocol import Target
from fuzz.running import Runner

__all__ = ["covered"]


def covered(target: Target, bundles: Sequence[Bundle]) -> str:
    """Run inputs and return how many lines of the target's modules were reached, in words.

    What a compiler reads is left out, as the interpreter never runs it.
    """
    files = [file for room in target.rooms for file in _files_of(room)]
    meter = coverage.Coverage(include=files, data_file=None, branch=True, config_file=False)
    meter.exclude("if TYPE_CHECKING:")
    with Runner(target) as runner:
        meter.start()
        try:
            for bundle in bundles:
                runner.run(bundle)
        finally:
            meter.stop()
    lines = missing = 0
    for file in files:
        _, statements, _, absent, _ = meter.analysis2(file)
        definitions = _definitions(Path(file))
        lines += len([line for line in statements if line not in definitions])
        missing += len([line for line in absent if line not in definitions])
    reached, rooms = lines - missing, ", ".join(target.rooms)
    return f"{target.name}: {len(bundles)} inputs reach {reached} of {lines} lines of {rooms}: {percent(reached, lines)} %"


def percent(part: int, whole: int) -> int:
    """A share in whole percent."""
    return 100 * part // max(1, whole)


def _files_of(room: str) -> list[str]:
    spec = find_spec(room)
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    return [str(path) for path in sorted(origin.parent.glob("*.py"))] if origin.name == "__init__.py" else [str(origin)]


def _definitions(path: Path) -> set[int]:
    """Lines that run when a module is imported: all that are in no function."""
    inside = set[int]()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside |= set(range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1))
    return set(range(1, len(path.read_text("utf-8").splitlines()) + 2)) - inside
