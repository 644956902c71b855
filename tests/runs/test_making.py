"""The step before is read from its checkpoint where it is there and is what its pack says; the packs are as good either way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.builders import write_file
from support.runs import step_model, weights_of, write_base

import deltapack
from deltapack.packing.compressing import compress
from deltapack.runs.keeping import pack_step
from deltapack.runs.restoring import restore_step

TIES = {"lm_head.weight": "a.weight"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What each pack was made against: the name of the folder, and how many packs over it."""
    calls: list[tuple[str, int]] = []

    def counted(base: Path, *args: Any, base_packs: Sequence[Path], **options: Any) -> deltapack.CompressReport:
        calls.append((base.name, len(base_packs)))
        return compress(base, *args, base_packs=base_packs, **options)

    monkeypatch.setattr("deltapack.runs.making.compress", counted)
    return calls


def write_tied(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    write_file(path / "model.safetensors", step_model(step), TIES)
    (path / "config.json").write_text(f'{{"step": {step}}}')
    (path / "trainer_state.json").write_text("{}")
    return path


def run(folder: Path, steps: range, change: Callable[[Path], Any] = lambda path: None) -> Path:
    """Pack steps; before each but the first, something happens to the checkpoint before it."""
    base = write_base(folder / "base")
    there: dict[int, Path] = {}
    for step in steps:
        if step - 1 in there:
            shutil.copytree(there[step - 1], folder / f"saved-{step - 1}")
            change(there[step - 1])
        there[step] = write_tied(folder, step)
        pack_step(folder / "packs", there[step], step, base=base, checkpoints=there)
    shutil.copytree(there[steps[-1]], folder / f"saved-{steps[-1]}")
    for step in steps:
        out = restore_step(folder / "packs", step, folder / f"out{step}", base=base)
        assert weights_of(out) == weights_of(folder / f"saved-{step}")
        assert (out / "config.json").read_text() == f'{{"step": {step}}}'
    return folder / "packs"


def test_a_checkpoint_that_is_there_is_read(tmp_path: Path, asked: list[tuple[str, int]]) -> None:
    run(tmp_path, range(1, 5))
    assert asked == [("base", 0), ("checkpoint-1", 0), ("checkpoint-2", 0), ("checkpoint-3", 0)]


def test_the_packs_are_the_same_either_way(tmp_path: Path, asked: list[tuple[str, int]]) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    read = run(tmp_path / "one", range(1, 4))
    restored = run(tmp_path / "two", range(1, 4), shutil.rmtree)
    assert asked[3:] == [("base", 0), ("base", 1), ("base", 2)]
    for path in read.iterdir():
        assert path.read_bytes() == (restored / path.name).read_bytes()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "weights deleted": (lambda path: (path / "model.safetensors").unlink(), False),
    "config changed": (lambda path: (path / "config.json").write_text("{}"), False),
    "file added": (lambda path: (path / "tokenizer.json").write_text("{}"), False),
    "file deleted": (lambda path: (path / "config.json").unlink(), False),
    "weights damaged": (lambda path: (path / "model.safetensors").write_bytes(b"\x10"), False),
    "weights written anew": (lambda path: write_file(path / "model.safetensors", step_model(1), {**TIES, "other": "text"}), False),
    "weights changed": (lambda path: flip(path / "model.safetensors"), True),
    "tensor gone": (lambda path: write_file(path / "model.safetensors", {"a.weight": step_model(1)["a.weight"]}), False),
}


@pytest.mark.parametrize("case", CHANGES)
def test_one_that_changed_is_not_used(case: str, tmp_path: Path, asked: list[tuple[str, int]]) -> None:
    change, tried = CHANGES[case]
    run(tmp_path, range(1, 3), change)
    assert asked == [("base", 0), *([("checkpoint-1", 0)] if tried else []), ("base", 1)]
