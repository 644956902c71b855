"""Every sparsifier, value codec and index codec on every odd shape: packed, restored and verified, or refused by an error of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import Model, Tensor, read_model, write_file
from support.fixtures import as_weights

import deltapack
from deltapack import Recipe
from deltapack.errors import RecipeError
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS
from deltapack.sparsify.table import SPARSIFIERS

SHAPES: list[tuple[int, ...]] = [(), (0,), (0, 5), (5, 0), (2, 0, 3), (1,), (1, 1, 1), (1, 7), (7, 1), (3, 4)]


DRAWN = [name for name, row in INDEX_CODECS.items() if row.kept == "random"]


def models() -> tuple[Model, Model]:
    """A base and a fine-tune with a tensor of each shape."""
    rng, base, tuned = np.random.default_rng(0), {}, {}
    for number, shape in enumerate(SHAPES):
        elements = rng.normal(size=shape).astype("<f4")
        base[f"t{number}"] = Tensor("f32", np.asarray(elements, "<f4"))
        tuned[f"t{number}"] = Tensor("f32", np.asarray(elements + rng.normal(0, 1e-3, shape), "<f4"))
    return base, tuned


def recipes(sparsify: str) -> Iterator[dict[str, Any]]:
    for values in ("auto", *VALUE_CODECS):
        for index in ("auto", *(name for name, row in INDEX_CODECS.items() if row.kept != "all")):
            for drop_rate in (0.0, 0.5, 0.99):
                yield {"sparsify": sparsify, "values": values, "index": index, "drop_rate": drop_rate}


@pytest.mark.parametrize("sparsify", SPARSIFIERS)
def test_odd_shapes(sparsify: str, tmp_path: Path) -> None:
    base, tuned = models()
    base_path, tuned_path = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    pack, out = tmp_path / "x.dpk", tmp_path / "out.safetensors"
    made = 0
    for settings in recipes(sparsify):
        try:
            deltapack.compress(base_path, tuned_path, pack, recipe=Recipe(overrides=as_weights(tuned), **settings), force=True, workers=1)
        except RecipeError as error:  # positions that are chosen cannot be drawn, and what keeps all has none
            assert settings["index"] in DRAWN and settings["index"] in str(error), settings
            continue
        made += 1
        assert deltapack.apply(base_path, pack, out, force=True, workers=1).verified, settings
        restored = read_model(out)
        assert {name: tensor.shape for name, tensor in restored.items()} == {name: tensor.shape for name, tensor in tuned.items()}
        if settings["drop_rate"] == 0 and settings["values"] == "f32":
            exact = [np.abs(restored[name].f64 - tuned[name].f64).max(initial=0) for name in tuned]
            assert max(exact) <= 2**-24, settings
    assert made >= 3 * len(VALUE_CODECS)
