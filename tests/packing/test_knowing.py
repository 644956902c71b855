"""Which weights are taken for vocabularies, by name and shape."""

from __future__ import annotations

import pytest

from deltapack.packing.knowing import is_vocabulary


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("model.decoder.layers.0.fc1.weight", 16_384, 4_096),
        ("decoder.block.3.layer.2.DenseReluDense.wi.weight", 4_096, 1_024),
        ("model.layers.3.mlp.shared_expert.up_proj.weight", 5_632, 2_048),
        ("model.layers.0.mlp.shared_experts.gate_proj.weight", 5_632, 2_048),
        ("encoder.layer.0.output.dense.weight", 4_096, 1_024),
        ("visual.patch_embed.proj.weight", 4_096, 1_024),
        ("mlp.up_proj.weight", 28_672, 8_192),
        ("model.embed_tokens.weight", 4_095, 64),
    ],
)
def test_what_is_no_vocabulary(name: str, rows: int, columns: int) -> None:
    assert not is_vocabulary(name, rows, columns)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
        "cls.predictions.decoder.weight",
        "shared.weight",
        "output.weight",
        "transformer.wte.weight",
        "lm_head.weight",
        "gpt_neox.embed_out.weight",
        "tok_embeddings.weight",
        "roberta.embeddings.word_embeddings.weight",
        "wte/embedding",
        "wte",
    ],
)
def test_what_is_a_vocabulary_by_its_name(name: str) -> None:
    assert is_vocabulary(name, 30_522, 8_192) and not is_vocabulary(name, 30_522, 16_384)


def test_what_is_a_vocabulary_by_its_shape() -> None:
    assert is_vocabulary("layers.25.linear.weight", 51_200, 2_048) and not is_vocabulary("layers.25.linear.weight", 51_200, 8_192)
