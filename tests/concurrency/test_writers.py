"""Several writers of one output: one complete result, and a clear error for who came too late."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.builders import leftovers, read_folder
from support.laws import SHARE
from support.together import Racers, at_once, racers

import deltapack

WRITERS = 4
REFUSED = ("OutputError", "InputChangedError")
Call = tuple[list[Any], dict[str, Any]]
Verb = tuple[str, str, Callable[[Path, Path, int], Call]]

VERBS: dict[str, Verb] = {
    "a pack": ("compress", "out.dpk", lambda model, out, n: ([model / "base", model / f"tuned-{n}", out], {})),
    "a folder": ("apply", "out", lambda model, out, n: ([model / "base", model / f"{n}.dpk", out], {"max_shard_size": 100_000})),
    "a file": ("apply", "out.safetensors", lambda model, out, n: ([model / "base", model / f"{n}.dpk", out], {})),
    "a merged folder": ("merge", "out", lambda model, out, n: ([model / "base", [model / f"{n}.dpk"], out], {"weights": [0.5]})),
    "parts": ("split", "out.dpk", lambda model, out, n: ([model / f"{n}.dpk", out], {"max_part_size": 50_000})),
}


@pytest.fixture(scope="module")
def processes() -> Iterator[Racers]:
    with racers(WRITERS) as started:
        yield started


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, bytes]]]:
    """What each writer makes when it is alone."""
    found: dict[str, list[dict[str, bytes]]] = {}
    for verb, (function, name, call) in VERBS.items():
        found[verb] = []
        for number in range(WRITERS):
            folder = tmp_path_factory.mktemp("alone")
            args, options = call(model, folder / name, number)
            getattr(deltapack, function)(*args, **options)
            found[verb].append(content_of(folder))
    return found


def content_of(folder: Path) -> dict[str, bytes]:
    """Files by name; parts joined, as one that takes the place of others is cut elsewhere."""
    files = read_folder(folder)
    index = files.pop("out.dpk.index.json", None)
    if index is None:
        return files
    assert sorted(files) == [part["name"] for part in json.loads(index)["parts"]]
    return {"out.dpk": b"".join(files[name] for name in sorted(files))}


def said(result: Any) -> str:
    return "done" if not isinstance(result, BaseException) else f"{type(result).__name__}: {result}"


@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
@pytest.mark.parametrize("kind", ["processes", "threads"])
@pytest.mark.parametrize("verb", VERBS)
def test_one_output(
    verb: str,
    kind: str,
    force: bool,
    model: Path,
    tmp_path: Path,
    processes: Racers,
    alone: dict[str, list[dict[str, bytes]]],
    tried: Counter[str],
) -> None:
    function, name, call = VERBS[verb]
    for _ in range(max(1, round(5 * SHARE))):
        folder = tmp_path / "out"
        folder.mkdir()
        calls = []
        for number in range(WRITERS):
            args, options = call(model, folder / name, number)
            calls.append((args, {**options, "force": force}))
        if kind == "processes":
            results = processes.run(function, calls)
        else:
            results = [said(found) for found in at_once([partial(getattr(deltapack, function), *a, **o) for a, o in calls])]
        done = [number for number, result in enumerate(results) if result == "done"]
        assert all(result == "done" or result.startswith(REFUSED) for result in results), results
        assert all(str(folder / "out") in result for result in results if result != "done"), results
        assert len(done) >= 1 and (force or len(done) == 1), results
        assert content_of(folder) in [alone[verb][number] for number in done], results
        assert not leftovers(folder) and len([*folder.iterdir()]) == len({path.split("/")[0] for path in read_folder(folder)})
        tried[f"runs that wrote one output at once ({kind}): complete"] += len(done)
        tried[f"runs that wrote one output at once ({kind}): refused by name"] += len(results) - len(done)
        shutil.rmtree(folder)
