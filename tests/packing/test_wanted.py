"""Which removed tensors a config still asks for."""

from __future__ import annotations

from typing import Any

import pytest

from deltapack.packing.wanted import missing_by_config

HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("config", "removed", "kept", "found"),
    [
        ({"num_nextn_predict_layers": 1}, ["model.mtp.0.eh_proj.weight"], [EMBED], {"num_nextn_predict_layers = 1"}),
        ({"text_config": {"mtp_num_hidden_layers": 1}}, ["mtp.fc.weight"], [EMBED], {"mtp_num_hidden_layers = 1"}),
        ({"num_nextn_predict_layers": 0}, ["model.mtp.0.eh_proj.weight"], [EMBED], set()),
        ({"tie_word_embeddings": False}, [HEAD], [EMBED], {"tie_word_embeddings = false"}),
        ({"text_config": {"tie_word_embeddings": False}}, [HEAD], [EMBED], {"tie_word_embeddings = false"}),
        ({"tie_word_embeddings": True}, [HEAD], [EMBED], set()),
        ({"tie_word_embeddings": False}, ["old.lm_head.weight"], [HEAD], set()),
        ({"vision_config": {"depth": 2}}, ["visual.blocks.0.attn.weight"], [EMBED], {"vision_config = {...}"}),
        ({"vision_config": {}}, ["visual.blocks.0.attn.weight"], [EMBED], set()),
        ({"audio_config": {"depth": 2}}, ["audio_tower.conv1.weight"], [EMBED], {"audio_config = {...}"}),
        ({"num_hidden_layers": 2}, ["model.layers.1.mlp.weight"], ["model.layers.0.mlp.weight"], {"num_hidden_layers = 2"}),
        ({"num_hidden_layers": 1}, ["model.layers.1.mlp.weight"], ["model.layers.0.mlp.weight"], set()),
        ({"num_hidden_layers": 2}, ["model.layers.1.old.weight"], ["model.layers.1.mlp.weight"], set()),
        ({"n_layer": 3}, ["transformer.h.2.attn.weight"], ["transformer.h.0.attn.weight"], {"n_layer = 3"}),
    ],
)
def test_what_is_missing(config: dict[str, Any], removed: list[str], kept: list[str], found: set[str]) -> None:
    missing = missing_by_config(config, removed, kept)
    assert set(missing) == found and all(names == tuple(removed) for names in missing.values())


def test_a_config_that_goes_deep() -> None:
    """A hostile config of many levels is looked into three levels deep."""
    config: dict[str, Any] = {}
    for _ in range(5000):
        config = {"text_config": config}
    assert missing_by_config(config, [HEAD], [EMBED]) == {}


def test_layers_of_another_architecture_are_not_asked_for() -> None:
    removed, kept = ["bert.encoder.layer.0.weight"], ["model.layers.0.weight", "model.layers.1.weight"]
    assert missing_by_config({"num_hidden_layers": 2}, removed, kept) == {}
