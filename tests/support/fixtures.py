"""What the fixtures `pack_of`, `applied` and `merged` give: functions of one folder, with types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltapack
from support.builders import Model, Tensor, read_model, write_file


@dataclass(frozen=True)
class PackOf:
    """Writes base and fine-tune as bare files and compresses them to `<name>.dpk`."""

    folder: Path

    def __call__(
        self,
        base: Mapping[str, Tensor],
        tuned: Mapping[str, Tensor],
        name: str = "pack",
        *,
        force: bool = False,
        name_map: Sequence[tuple[str, str]] = (),
        workers: int | None = None,
        **recipe: Any,
    ) -> Path:
        paths = self.folder / "base.safetensors", self.folder / f"{name}.safetensors"
        for path, tensors in zip(paths, (base, tuned), strict=True):
            write_file(path, tensors)
        out = self.folder / f"{name}.dpk"
        deltapack.compress(*paths, out, recipe=deltapack.Recipe(**recipe), name_map=name_map, workers=workers, force=force)
        return out


@dataclass(frozen=True)
class Applied:
    """Applies a pack to the base of `pack_of` and reads what came out."""

    folder: Path

    def __call__(self, pack: Path, **options: Any) -> Model:
        out = self.folder / "out.safetensors"
        deltapack.apply(self.folder / "base.safetensors", pack, out, force=True, **options)
        return read_model(out)


@dataclass(frozen=True)
class Merged:
    """Merges packs onto the base of `pack_of` and reads what came out."""

    folder: Path

    def __call__(self, packs: Sequence[Path], **options: Any) -> Model:
        out = self.folder / "merged.safetensors"
        deltapack.merge(self.folder / "base.safetensors", packs, out, force=True, **options)
        return read_model(out)
