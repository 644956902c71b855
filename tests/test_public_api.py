"""The public names: sorted, documented, and cheap to import."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import deltapack

FILES = sorted(Path(deltapack.__file__).parent.rglob("*.py"))
HEAVY = {"torch", "numba", "scipy", "transformers", "matplotlib"}


def exported(tree: ast.Module) -> list[str] | None:
    """The value of `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            found: list[str] = ast.literal_eval(node.value)
            return found
    return None


def rank(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each by name: the order that ruff keeps."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def defined(tree: ast.Module) -> dict[str, ast.stmt]:
    """Names that a module binds at its top level."""
    names: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name): node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names |= {name.id: node for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(path.parents[2])))
def test_all_is_sorted_and_there(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    names = exported(tree)
    has_names = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
    assert names is not None or not has_names or path.name == "__main__.py"
    if names is None:
        return
    assert names == sorted(set(names), key=rank)
    if path.parent != FILES[0].parent or path.name != "__init__.py":
        assert set(names) <= defined(tree).keys()
    assert ast.get_docstring(tree)
    for name in names:
        node = defined(tree).get(name)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert ast.get_docstring(node), f"{name} has no docstring"
            inner = node.body if isinstance(node, ast.ClassDef) else []
            for method in inner:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    assert ast.get_docstring(method), f"{name}.{method.name} has no docstring"


def test_the_public_names_are_sorted_and_complete() -> None:
    assert deltapack.__all__ == sorted(set(deltapack.__all__), key=rank)
    modules = {info.name for info in pkgutil.iter_modules(deltapack.__path__)}
    # A submodule that is imported becomes an attribute too; no public name may be hidden by one.
    assert not modules & set(deltapack.__all__)
    public = {name for name in dir(deltapack) if not name.startswith("_")}
    helpers = {"Any", "TYPE_CHECKING", "annotations", "import_module"}
    assert public - modules - helpers == set(deltapack.__all__) - {"__version__"}


@pytest.mark.parametrize("name", sorted(set(deltapack.__all__) - {"__version__"}))
def test_every_public_name_is_documented(name: str) -> None:
    found = getattr(deltapack, name)
    assert inspect.isclass(found) or inspect.isfunction(found)
    assert inspect.getdoc(found)
    assert found.__module__.startswith("deltapack.")
    assert name in importlib.import_module(found.__module__).__all__


def test_public_functions_document_their_errors() -> None:
    for name in ("apply", "compress", "merge", "open_pack", "verify"):
        assert "Raises:" in (getattr(deltapack, name).__doc__ or "")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        deltapack.nonsense  # noqa: B018


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that are loaded after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import deltapack",
        "import deltapack.cli.main",
        "import deltapack; dir(deltapack); deltapack.Recipe; deltapack.DeltapackError; deltapack.Limits; deltapack.CompressReport",
        "import deltapack; deltapack.open_pack",
        "import deltapack; deltapack.compress, deltapack.apply, deltapack.merge, deltapack.verify",
    ],
)
def test_heavy_libraries_are_not_loaded(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


@pytest.mark.parametrize("statement", ["import deltapack", "import deltapack.cli.main"])
def test_numpy_is_not_loaded_either(statement: str) -> None:
    assert "numpy" not in loaded_by(statement)
