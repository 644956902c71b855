"""What deltapack uses of vLLM, SGLang, TRL and verl is where it was, in the versions that are here.

Nothing of a host is imported: its source is read from an installation, also one without its dependencies (`pip install --no-deps vllm`),
or from folders that `DELTAPACK_HOSTS` names, in which wheels were unpacked.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support import fake_hosts
from support.hooks import HOOKS, Hook, found_in


def folder_of(package: str) -> Path | None:
    """The folder that holds a package."""
    for folder in filter(None, os.environ.get("DELTAPACK_HOSTS", "").split(os.pathsep)):
        if (Path(folder) / package / "__init__.py").exists():
            return Path(folder)
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parents[1]


@pytest.mark.hosts
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: f"{hook.file.partition('/')[0]}-{hook.name}")
def test_a_hook_is_where_it_was(hook: Hook) -> None:
    package = hook.file.partition("/")[0]
    folder = folder_of(package)
    if folder is None:
        pytest.skip(f"{package} is not here: pip install --no-deps {package}, or name a folder with its source in DELTAPACK_HOSTS")
    assert found_in(folder, hook) is None


def test_the_stand_ins_of_other_tests_have_these_arguments() -> None:
    file = Path(fake_hosts.__file__)
    names = {node.name for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    own = [replace(hook, file=file.name) for hook in HOOKS if hook.file.startswith("vllm") and hook.name.partition(".")[0] in names]
    own = [hook for hook in own if not hook.name.startswith("WeightTransferEngine.") or hook.name.endswith("__init__")]
    wrong = {hook.name: found for hook in own if (found := found_in(file.parent, hook)) is not None}
    assert wrong == {} and len(own) > 12


def test_what_moved_is_found(tmp_path: Path) -> None:
    file = tmp_path / "host" / "__init__.py"
    file.parent.mkdir()
    file.write_text("NAME: int = 1\nclass A:\n    def one(self, x, y=1, *, z): ...\n    async def two(self): ...\n")
    as_it_is = [("NAME", None), ("A", None), ("A.one", ("self", "x")), ("A.one", ("self", "x", "y", "z")), ("A.two", ("self",))]
    assert [found_in(tmp_path, Hook("host/__init__.py", *one)) for one in as_it_is] == [None] * len(as_it_is)
    moved = {
        Hook("host/other.py", "NAME"): "there is no such file",
        Hook("host/__init__.py", "OTHER"): "there is no 'OTHER'",
        Hook("host/__init__.py", "A.three", ()): "there is no 'three'",
        Hook("host/__init__.py", "NAME", ()): "it is no function",
        Hook("host/__init__.py", "A.one", ("self", "w")): "its arguments are self, x, y, z",
        Hook("host/__init__.py", "A.one", ("self",)): "its arguments are self, x, y, z",
    }
    assert {hook: found_in(tmp_path, hook) for hook in moved} == moved
