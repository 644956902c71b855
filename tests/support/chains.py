"""Chains of packs: each is made from what the one before restores, step by step, as one would without chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deltapack
from support.builders import Model, write_file


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
