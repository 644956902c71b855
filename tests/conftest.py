"""Let tests import `support`, `vectors` and `benchmarks`, whatever folder pytest was started in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

if TYPE_CHECKING:
    from support.builders import Model, Tensor


@pytest.fixture
def pack_of(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes base and fine-tune as bare files and compresses them to `<name>.dpk`."""

    def make(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], name: str = "pack", *, force: bool = False, **recipe: Any) -> Path:
        from support import builders

        import deltapack

        builders.write_file(tmp_path / "base.safetensors", base)
        builders.write_file(tmp_path / f"{name}.safetensors", tuned)
        options = {key: recipe.pop(key) for key in ("name_map", "workers") if key in recipe}
        deltapack.compress(
            tmp_path / "base.safetensors",
            tmp_path / f"{name}.safetensors",
            tmp_path / f"{name}.dpk",
            recipe=deltapack.Recipe(**recipe),
            force=force,
            **options,
        )
        return tmp_path / f"{name}.dpk"

    return make


@pytest.fixture
def applied(tmp_path: Path) -> Callable[..., Model]:
    """Return a function that applies a pack to the base of `pack_of` and reads what came out."""

    def restore(pack: Path, **options: Any) -> Model:
        from support import builders

        import deltapack

        out = tmp_path / "out.safetensors"
        deltapack.apply(tmp_path / "base.safetensors", pack, out, force=True, **options)
        return builders.read_model(out)

    return restore


@pytest.fixture
def merged(tmp_path: Path) -> Callable[..., Model]:
    """Return a function that merges packs onto the base of `pack_of` and reads what came out."""

    def restore(packs: list[Path], **options: Any) -> Model:
        from support import builders

        import deltapack

        out = tmp_path / "merged.safetensors"
        deltapack.merge(tmp_path / "base.safetensors", packs, out, force=True, **options)
        return builders.read_model(out)

    return restore
