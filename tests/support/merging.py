"""A merge in every way that there is of having it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import deltapack
from support.builders import Model, Tensor, decode_by_spec, read_model


def checked(folder: Path, base: Mapping[str, Tensor], packs: Sequence[Path], **options: Any) -> Model:
    """Merge into a file and into a pack, onto the base of `pack_of`; both, and the reference decoder, give one model."""
    paths: dict[str, Any] = {"base": folder / "base.safetensors", "packs": packs, "force": True}
    deltapack.merge(**paths, out=folder / "merged.safetensors", **options)
    deltapack.merge(**paths, out=folder / "merged.dpk", **options)
    direct = read_model(folder / "merged.safetensors")
    deltapack.apply(folder / "base.safetensors", folder / "merged.dpk", folder / "applied.safetensors", force=True)
    assert read_model(folder / "applied.safetensors") == direct
    assert decode_by_spec(base, folder / "merged.dpk") == direct
    deltapack.verify(folder / "merged.dpk", folder / "base.safetensors")
    return direct
