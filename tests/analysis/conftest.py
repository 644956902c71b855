"""Language models of a few thousand weights, saved and packed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import deltapack

if TYPE_CHECKING:
    from support.languages import Languages


@pytest.fixture(scope="session")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Languages:
    pytest.importorskip("transformers")
    from support.languages import Languages, language_models

    folder = tmp_path_factory.mktemp("languages")
    base, finetuned, text = language_models(folder)
    packs = {}
    for rate in (0.5, 0.9, 0.99):
        packs[rate] = folder / f"{rate}.dpk"
        deltapack.compress(base, finetuned, packs[rate], recipe=deltapack.Recipe(drop_rate=rate, values="int8"))
    return Languages(base, finetuned, text, packs)
