"""The benchmarks' modules import downwards only, and what runs in small or foreign processes imports nothing of the project."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER: tuple[tuple[str, ...], ...] = (
    (
        *("assets", "child", "fidelity.coding", "fidelity.llama", "fidelity.optimizers", "fidelity.reactions", "fidelity.tokens"),
        *("gpu_model", "kernels", "launch", "results", "sentences"),
    ),
    ("fidelity.methods", "fidelity.smollm2", "fidelity.texts", "pairs", "processes", "summary", "timing"),
    ("checkpoints", "command"),
    (
        *("cluster", "codes", "exact.training", "fidelity.models", "fidelity.values", "gpu", "loops", "memory", "overhead", "peers"),
        *("sizes", "speed.candidates", "virtual"),
    ),
    ("exact.inputs", "fidelity.measuring", "speed.inputs"),
    (
        *("exact.entropy", "exact.packs", "exact.thresholds", "exact.tools", "fidelity.merges", "fidelity.real", "fidelity.running"),
        "speed.checks",
    ),
    ("exact.folders", "exact.sizes", "exact.speed", "fidelity.study", "speed.curves", "speed.peers", "speed.profile"),
    ("exact.__main__", "fidelity.report", "speed.groups"),
    ("fidelity.page", "fidelity.plots", "speed.targets"),
    ("fidelity.__main__", "speed.__main__"),
    ("__main__",),
)
"""Floors from the ground up. A module imports from floors below its own, inside functions, too."""
BARE = {
    "launch": "is as small as can be, as a child's peak starts with its parent's",
    "child": "measures the import of the package",
    "peers": "runs in an environment without it",
}
"""Modules that import nothing but the standard library where they are loaded, and why."""
FLOORS = {module: floor for floor, modules in enumerate(ORDER) for module in modules}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "benchmarks").with_suffix("").parts)


FILES = {module_name(path): ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "benchmarks").rglob("*.py"))}
PACKAGES = {"__init__", "exact.__init__", "fidelity.__init__", "speed.__init__"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported; `from a import b` may name module a.b or a name in a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name.partition(".")[2] in FILES else str(node.module) for name in inner)


def own(tree: ast.AST) -> list[str]:
    """Modules of the benchmarks that are imported, without their package in front."""
    return [name.removeprefix("benchmarks.") for name in imported(tree) if name.split(".")[0] == "benchmarks"]


def test_every_module_has_its_floor() -> None:
    assert FILES.keys() - PACKAGES == FLOORS.keys()
    assert sum(len(own(tree)) for tree in FILES.values()) > 50


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_modules_import_what_is_below_them(name: str) -> None:
    for module in own(FILES[name]):
        assert FLOORS[module] < FLOORS[name], f"{name} imports {module}"


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_packages_import_nothing(name: str) -> None:
    assert set(imported(FILES[name])) <= {"__future__"}


@pytest.mark.parametrize("name", sorted(BARE))
def test_some_modules_load_nothing_heavy(name: str) -> None:
    top = [node for node in FILES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert top
    for module in imported(ast.Module(list(top), [])):
        assert module.split(".")[0] not in {"benchmarks", "deltapack", "numpy", "torch"}, f"{name} {BARE[name]}, but imports {module}"
