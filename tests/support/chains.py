"""Chains of packs: each is made from what the one before restores, step by step, as one would without chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import deltapack
from deltapack.format.reader import PackReader
from support.builders import Model, Tensor, cast, moved, random_tensor, whole, write_file


@dataclass(frozen=True)
class State:
    """A checkpoint to reach: tensors, second names by name, side files."""

    tensors: Model
    ties: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write it as a folder."""
        folder.mkdir()
        write_file(folder / "model.safetensors", self.tensors, {**self.metadata, **self.ties})
        for name, text in {"config.json": "{}\n", **self.files}.items():
            (folder / name).write_text(text)
        return folder


@dataclass(frozen=True)
class Steps:
    """A base and what was made step by step: packs, and the folders that they restore one by one."""

    base: Path
    packs: list[Path]
    folders: list[Path]


def make_steps(folder: Path, states: Sequence[State], **options: Any) -> Steps:
    """Write the first state as base, and a pack from each to the next; what a pack restores is the base of the one after it."""
    steps = Steps(states[0].write(folder / "base"), [], [])
    before = steps.base
    for number, state in enumerate(states[1:]):
        tuned, pack, restored = state.write(folder / f"tuned{number}"), folder / f"{number:04}.dpk", folder / f"restored{number}"
        deltapack.compress(before, tuned, pack, **{"allow_unrelated": True, "workers": 1, **options})
        deltapack.apply(before, pack, restored, workers=1)
        steps.packs.append(pack)
        steps.folders.append(restored)
        before = restored
    return steps


def comes_back(steps: Steps) -> bool:
    """Whether the tensors are once again what they were before, after others: this is refused."""
    states: list[str] = []
    for pack in steps.packs:
        with PackReader(pack) as reader:
            states += [reader.index.base_fingerprint] * (not states) + [reader.index.result_fingerprint]
    return len({state for state, _ in groupby(states)}) < len(list(groupby(states)))


NAMES = ("a.weight", "b.weight", "c.weight", "d.weight")


def change(draw: st.DrawFn, state: State, seed: int) -> State:
    """One more step: tensors moved, added, removed, renamed, grown, cut, converted, tied; files and metadata, too."""
    tensors, ties, files, metadata = dict(state.tensors), dict(state.ties), dict(state.files), dict(state.metadata)
    for number in range(draw(st.integers(0, 3))):
        what = draw(
            st.sampled_from(("move", "move", "add", "remove", "rename", "grow", "cut", "convert", "tie", "untie", "file", "string"))
        )
        free = [name for name in NAMES if name not in tensors and name not in ties]
        kept = [name for name in NAMES if name in tensors and name not in ties.values()]
        name = draw(st.sampled_from(sorted(tensors)))
        old = tensors[name]
        if what == "move" and old.dtype != "i64":
            tensors[name] = moved(old, seed + number)
        elif what == "add" and free:
            tensors[free[0]] = random_tensor(seed + number, (draw(st.integers(1, 9)), 30))
        elif what == "remove" and len(kept) > 1 and len(tensors) > 2:
            del tensors[kept[0]]
        elif what == "rename" and free and kept:
            tensors[free[0]] = tensors.pop(kept[-1])
        elif what == "grow":
            tensors[name] = Tensor(old.dtype, np.concatenate([old.bits, old.bits[:2]]))
        elif what == "cut":
            tensors[name] = Tensor(old.dtype, old.bits[: max(1, len(old.bits) - 1)])
        elif what == "convert" and old.dtype != "i64":
            tensors[name] = cast(old.f64, draw(st.sampled_from(("f32", "bf16", "f16"))))
        elif what == "tie" and free:
            ties[free[-1]] = name
        elif what == "untie":
            ties.clear()
        elif what == "file":
            file = draw(st.sampled_from(("tokenizer.json", "README.md", "code.py", "config.json")))
            files[file] = f'{{"x": {seed}, "y": "{"word " * 40}"}}\n'
        elif what == "string":
            metadata["step"] = str(seed)
    return State(tensors, ties, files, metadata)


@st.composite
def chains(draw: st.DrawFn) -> list[State]:
    """A base and a few states after it."""
    base: Model = {"a.weight": random_tensor(1, (40, 30)), "b.weight": random_tensor(2, (70,), "bf16"), "ids": whole("i64", np.arange(5))}
    base["empty"] = random_tensor(3, (0, 3))
    states = [State(base, files={"tokenizer.json": '{"y": "' + "word " * 40 + '"}\n'})]
    for number in range(draw(st.integers(1, 5))):
        states.append(change(draw, states[-1], 10 * number))
    return states
