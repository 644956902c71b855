"""What the fixtures `pack_of`, `applied` and `merged` give: functions of one folder, with types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltapack
from support.builders import FLOATS, Model, Tensor, read_model, write_file


def as_weights(tensors: Mapping[str, Tensor]) -> tuple[deltapack.Override, ...]:
    """Make every float tensor a weight, for tests of what is dropped and coded; tests of roles are in tests/packing."""
    return (deltapack.Override(".*", role="weight"),) if any(tensor.dtype in FLOATS for tensor in tensors.values()) else ()


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
        allow_unrelated: bool = False,
        overrides: Sequence[deltapack.Override] = (),
        **recipe: Any,
    ) -> Path:
        """Pack as a recipe says; every float tensor is a weight, whatever its shape, at a drop rate of 0.9 unless told otherwise."""
        paths = self.folder / "base.safetensors", self.folder / f"{name}.safetensors"
        for path, tensors in zip(paths, (base, tuned), strict=True):
            write_file(path, tensors)
        out = self.folder / f"{name}.dpk"
        dropped = {} if recipe.get("exact") is True or "budget" in recipe else {"drop_rate": 0.9}
        made = deltapack.Recipe(overrides=(*as_weights(tuned), *overrides), **(dropped | recipe))
        deltapack.compress(*paths, out, recipe=made, name_map=name_map, allow_unrelated=allow_unrelated, workers=workers, force=force)
        return out


@dataclass(frozen=True)
class Applied:
    """Applies a pack to the base of `pack_of` and reads what came out."""

    folder: Path

    def __call__(self, pack: Path, **options: Any) -> Model:
        out = self.folder / "out.safetensors"
        out.unlink(missing_ok=True)  # a file that is byte for byte a fine-tune does not say who wrote it, so it is not replaced
        deltapack.apply(self.folder / "base.safetensors", pack, out, **options)
        return read_model(out)


@dataclass(frozen=True)
class Merged:
    """Merges packs onto the base of `pack_of` and reads what came out."""

    folder: Path

    def __call__(self, packs: Sequence[Path], **options: Any) -> Model:
        out = self.folder / "merged.safetensors"
        deltapack.merge(self.folder / "base.safetensors", packs, out, force=True, **options)
        return read_model(out)
