"""Imports go downwards only, and heavy libraries stay where they are needed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "deltapack"
ORDER: tuple[tuple[str, ...], ...] = (
    ("_version", "dtypes", "errors", "forks", "limits"),
    ("sources",),
    ("checking", "engines", "kinds", "parallel", "patterns", "reports"),
    ("format",),
    ("kernels",),
    ("codecs",),
    ("sparsify",),
    ("checkpoint",),
    ("adapters",),
    ("cluster",),
    ("composing",),
    ("device",),
    ("packing",),
    ("restoring",),
    ("packs",),
    ("exporting",),
    ("merging",),
    ("publishing",),
    ("virtual",),
    ("live",),
    ("runs",),
    ("analysis",),
    ("integrations",),
    ("demo",),
    ("doctor",),
    ("cli",),
    ("__main__",),
)
"""Floors of the house, from the ground up. Imports go down, or stay on the floor."""
NARROW: dict[str, set[str]] = {
    "kernels": {"dtypes", "errors", "forks", "format.digest"},
    "sources": {"errors", "forks", "limits"},
    "checkpoint": {
        "checking",
        "dtypes",
        "errors",
        "forks",
        "kinds",
        "limits",
        "patterns",
        "format.arrangement",
        "format.atomic",
        "format.digest",
        "format.folders",
        "format.paths",
        "format.placing",
        "sources",
    },
    "merging.methods": {"errors", "kernels"},
    "merging.recipe": {"checking", "errors", "merging.methods", "patterns"},
}
"""Rooms and modules that know less than their floor allows."""
DOORS = {"cli", "demo", "integrations", "__main__"}
"""Nothing imports these, but for `cli`, which starts `demo`."""
BEHIND_USE_CASES = {
    "adapters",
    "checkpoint",
    "codecs",
    "composing",
    "device",
    "format",
    "kernels",
    "merging.methods",
    "sources",
    "sparsify",
}
"""Rooms that the command line reaches through use cases only."""
LAZY = {
    "ray": {"cluster.ray_engine"},
    "torch": {"checkpoint.torchfile", "doctor.checkup", "exporting.modules", "exporting.restored_model", "packs.pack", "packs.patching"},
    "scipy": {"packs.pack"},
    "matplotlib": {"demo.render"},
    "mfusepy": {"integrations.fuse.mounting"},
    "transformers": {"analysis.texts", "checkpoint.conversions", "exporting.modules", "live.loading"},
    "fsspec": {"sources.objects"},
    "urllib3": {"sources.web_requests"},
}
"""Libraries that are imported inside functions only, and where."""
AT_HOME = {
    "ray": {"cluster.ray_task"},
    "torch": {"analysis.judging", "analysis.models", "demo", "device", "integrations", "live", "restoring.on_device"},
    "fsspec": {"integrations"},
    "transformers": {"integrations"},
    "vllm": {"integrations"},
    "triton": {
        "device.exact_launch",
        "device.triton_decoding",
        "device.triton_engine",
        "device.triton_exact",
        "device.triton_kernels",
        "device.triton_rounding",
        "device.triton_values",
    },
}
"""Rooms and modules that import a heavy library as they please, because nothing that can do without it imports them."""


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name; `lazy` inside a function or for type checkers only."""

    module: str
    lazy: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(node: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (Import(target(child.module or "", alias.name), lazy) for alias in child.names)
        else:
            deeper = lazy or isinstance(child, ast.FunctionDef | ast.Lambda) or is_type_checking(child)
            yield from imports_of(child, deeper)


def target(module: str, name: str) -> str:
    """`from a import b` names module a.b if there is one, else a."""
    path = PACKAGE.parent.joinpath(*module.split("."), name)
    return f"{module}.{name}" if path.is_dir() or path.with_suffix(".py").exists() else module


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {name: list(imports_of(ast.parse(path.read_text("utf-8")))) for name, path in FILES.items()}


def own(name: str) -> list[Import]:
    """Imports of this package, without its name in front."""
    return [Import(i.module[10:], i.lazy) for i in IMPORTS[name] if i.module.split(".")[0] == "deltapack"]


FLOORS = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}


def room_of(module: str) -> str:
    """The room that a module lives in; of a loose module, its own name."""
    return module.split(".")[0]


def within(module: str, rooms: Iterable[str]) -> bool:
    """Whether a module is one of these rooms and modules, or inside of one."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def test_there_is_something_to_look_at() -> None:
    assert sum(len(found) for found in IMPORTS.values()) > 200


def test_every_room_has_its_floor() -> None:
    assert {room_of(name) for name in FILES if name} == FLOORS.keys()


@pytest.mark.parametrize("name", [name for name in FILES if name])
def test_rooms_import_what_is_below_them(name: str) -> None:
    room = room_of(name)
    for found in [found for found in own(name) if found.module]:
        assert FLOORS[room_of(found.module)] <= FLOORS[room], f"{name} imports {found.module}"


@pytest.mark.parametrize("name", [name for name in FILES if within(name, NARROW)])
def test_some_rooms_know_little(name: str) -> None:
    for room in [room for room in NARROW if within(name, [room])]:
        for found in own(name):
            assert within(found.module, {room, *NARROW[room]}), f"{name} imports {found.module}"


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) not in DOORS])
def test_nothing_imports_the_doors(name: str) -> None:
    assert not [found for found in own(name) if room_of(found.module) in DOORS]


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) == "demo"])
def test_the_demo_does_not_import_the_command_line(name: str) -> None:
    assert not [found for found in own(name) if room_of(found.module) == "cli"]


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) == "cli"])
def test_the_command_line_stays_above_the_rooms(name: str) -> None:
    assert not [found for found in own(name) if within(found.module, BEHIND_USE_CASES)]


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) != "cli" and name])
def test_nobody_imports_from_the_top(name: str) -> None:
    """The public names are for users; inside, a module says where a name lives."""
    assert not [found for found in own(name) if not found.module]


@pytest.mark.parametrize("library", sorted({*LAZY, *AT_HOME}))
def test_heavy_libraries_are_imported_inside_functions(library: str) -> None:
    for name, imports in IMPORTS.items():
        for found in imports:
            if found.module.split(".")[0] == library:
                at_home = {room_of(name), name} & AT_HOME.get(library, set())
                assert at_home or (name in LAZY.get(library, ()) and found.lazy), f"{name} imports {found.module}"


@pytest.mark.parametrize("library", sorted(AT_HOME))
def test_homes_of_heavy_libraries_are_entered_lazily(library: str) -> None:
    """But for the rooms that are homes themselves, and doors."""
    homes = {name for name in FILES if {room_of(name), name} & AT_HOME[library]}
    for name in FILES.keys() - homes:
        for found in own(name):
            assert found.module not in homes - {"device.ready"} or found.lazy or room_of(name) in DOORS, f"{name} imports {found.module}"


def test_numba_stays_in_its_backend() -> None:
    users = {name for name, imports in IMPORTS.items() for found in imports if found.module.split(".")[0] == "numba"}
    assert users
    assert {name[: len("kernels.cpu")] for name in users} == {"kernels.cpu"}
    backends = [
        (name, found.lazy)
        for name in FILES
        for found in own(name)
        if found.module.startswith("kernels.cpu") and not name.startswith("kernels.cpu")
    ]
    assert backends == [("kernels.choice", True)]


def test_no_cycles() -> None:
    """Lazy imports count: a cycle through one is still a cycle of meaning. The top and `__main__` are above all."""
    below = {name: {i.module for i in own(name)} & FILES.keys() - {name, ""} for name in FILES if name}
    done: set[str] = set()
    while len(done) < len(below):
        free = {name for name, needs in below.items() if name not in done and needs <= done}
        assert free, f"a cycle among {sorted(set(below) - done)}"
        done |= free


def test_the_picture_of_the_house_is_this_table() -> None:
    """CONTRIBUTING.md shows the rooms from the top down; the modules at the top are its last line."""
    picture = (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8").split("```text", 1)[1].split("```", 1)[0]
    rooms = re.findall(r"^ (\w+)/ ", picture, re.M)
    assert rooms == [room for floor in reversed(ORDER) for room in floor if (PACKAGE / room).is_dir()]
    loose = {room for floor in ORDER for room in floor if not (PACKAGE / room).is_dir()}
    assert set(re.split(r"[ ,]+", picture.rsplit("(top)", 1)[1].strip())) == loose - {"_version", "__main__"}
