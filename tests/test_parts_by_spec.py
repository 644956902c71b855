"""Packs in parts that break one rule of spec/11-parts.md each: the reference decoder and the package refuse them all."""

from __future__ import annotations

import ast
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.builders import ROOT, reference_decoder, small_model, tuned_model, write_folder

import deltapack
from deltapack.errors import DeltapackError

Index = dict[str, Any]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a pack in four parts or more."""
    folder = tmp_path_factory.mktemp("parts")
    base, tuned = write_folder(folder / "base", small_model()), write_folder(folder / "tuned", tuned_model(small_model()))
    deltapack.compress(base, tuned, folder / "whole.dpk")
    (folder / "parts").mkdir()
    return folder / "parts" / deltapack.split(folder / "whole.dpk", folder / "parts" / "x.dpk", max_part_size=1000).index


def renamed(index: Index, number: int, name: str) -> None:
    index["parts"][number - 1]["name"] = name


def all_renamed(index: Index, folder: Path, stem: str) -> None:
    """Parts that are there, under names that begin otherwise."""
    for row in index["parts"]:
        name = stem + row["name"].removeprefix("x")
        (folder / row["name"]).rename(folder / name)
        row["name"] = name


def another_part(index: Index, folder: Path) -> None:
    path = folder / index["parts"][1]["name"]
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


FAULTS: dict[str, Callable[[Index, Path], Any]] = {
    "a field too many": lambda index, folder: index.update(more=1),
    "a field too few": lambda index, folder: index.pop("size"),
    "another format": lambda index, folder: index.update(format="parts"),
    "another version": lambda index, folder: index.update(version=2),
    "no parts": lambda index, folder: index.update(parts=[]),
    "parts that are no array": lambda index, folder: index.update(parts={}),
    "too many parts": lambda index, folder: index.update(parts=index["parts"] * 1001),
    "a part without a digest": lambda index, folder: index["parts"][0].pop("sha256"),
    "a part elsewhere": lambda index, folder: renamed(index, 1, f"../{index['parts'][0]['name']}"),
    "a part with the name of another": lambda index, folder: renamed(index, 2, index["parts"][2]["name"]),
    "a part that is missing": lambda index, folder: (folder / index["parts"][2]["name"]).unlink(),
    "a part of another size": lambda index, folder: index["parts"][1].update(size=1),
    "a part with other bytes": another_part,
    "another size in all": lambda index, folder: index.update(size=index["size"] + 1),
    "another pack": lambda index, folder: index.update(pack_id="0" * 64),
    "a pack without an id": lambda index, folder: index.update(pack_id=None),
    "an id in capitals": lambda index, folder: index.update(pack_id=index["pack_id"].upper()),
    "a version that is no number": lambda index, folder: index.update(version=True),
    "a version with a point": lambda index, folder: index.update(version=1.0),
    "a size with a point": lambda index, folder: index.update(size=float(index["size"])),
    "a part whose size has a point": lambda index, folder: index["parts"][0].update(size=float(index["parts"][0]["size"])),
    "a part with a digest that is none": lambda index, folder: index["parts"][0].update(sha256=None),
    "parts that are all in the number": lambda index, folder: all_renamed(index, folder, ""),
    "parts with a name that is not printed": lambda index, folder: all_renamed(index, folder, "x\u200b"),
    "parts with a name that is too long": lambda index, folder: [row.update(name="é" * 120 + row["name"]) for row in index["parts"]],
}
SPELLINGS: dict[str, Callable[[str], bytes]] = {
    "a member twice": lambda text: text.replace("{", '{"version": 1, ', 1).encode(),
    "another encoding": lambda text: text.encode("utf-16"),
    "a mark of the order of bytes": lambda text: text.encode("utf-8-sig"),
    "no JSON": lambda text: text[:-1].encode(),
    "too many bytes": lambda text: text.encode() + b" " * (1 << 25),
}
"""The index with the right members, in a spelling that is refused."""
NAMES = [*FAULTS, *SPELLINGS]


def faulty(parts: Path, folder: Path, name: str) -> Path:
    """Copy the parts, and spoil them."""
    for path in parts.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    index = json.loads(parts.read_bytes())
    if name in FAULTS:
        FAULTS[name](index, folder)
    text = json.dumps(index)
    (folder / parts.name).write_bytes(SPELLINGS[name](text) if name in SPELLINGS else text.encode())
    return folder / parts.name


def line_of_check(path: Path) -> int:
    """The line of the reference decoder whose check a pack fails."""
    reference = reference_decoder()
    with pytest.raises(reference.Invalid) as caught:
        reference.read_pack(path)
    assert caught.value.rule == "parts"
    return [frame.lineno or 0 for frame in traceback.extract_tb(caught.value.__traceback__) if frame.name not in ("need", "fail")][-1]


@pytest.mark.parametrize("name", NAMES)
def test_both_refuse_it(name: str, parts: Path, tmp_path: Path) -> None:
    path = faulty(parts, tmp_path, name)
    assert line_of_check(path) > 0
    with pytest.raises(DeltapackError):  # a digest of a part is compared where all of it is read
        deltapack.verify(path)


def test_every_check_of_parts_is_failed_by_one(parts: Path, tmp_path: Path) -> None:
    reached = set()
    for number, name in enumerate(NAMES):
        (tmp_path / f"{number}").mkdir()
        reached.add(line_of_check(faulty(parts, tmp_path / f"{number}", name)))
    calls = [
        node for node in ast.walk(ast.parse((ROOT / "spec" / "reference_decoder.py").read_text("utf-8"))) if isinstance(node, ast.Call)
    ]
    checks = [
        range(call.lineno, (call.end_lineno or call.lineno) + 1)
        for call in calls
        if getattr(call.func, "id", "") == "need" and any(isinstance(a, ast.Constant) and a.value == "parts" for a in call.args)
    ]
    assert len(checks) == 13 and all(any(line in lines for line in reached) for lines in checks)
