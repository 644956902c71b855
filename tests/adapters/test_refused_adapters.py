"""Adapters that cannot be merged right are refused, by the key or tensor at fault and with a way out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import COLUMNS, ROWS, START, WORDS, base_model, lora, merged, write_adapter
from support.builders import Model, random_tensor, whole, write_file, write_folder

import deltapack
from deltapack.adapters.settings import read_settings
from deltapack.errors import BaseMismatchError, CheckpointError, DeltapackError, LimitError, NotACheckpointError, UnsupportedError

DOWN = lora("layer.down", ROWS, COLUMNS)


def refused(base: Model, adapter: Model, tmp_path: Path, config: dict[str, Any], files: dict[str, str] | None = None) -> DeltapackError:
    folder = write_adapter(tmp_path / "adapter", adapter, **config)
    with pytest.raises(DeltapackError) as caught:
        merged(write_folder(tmp_path / "base", base, files), folder)
    assert caught.value.hint or caught.value.expected or caught.value.found
    return caught.value


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        ({"peft_type": "IA3"}, UnsupportedError, "expected peft_type LORA, LOHA, LOKR, found 'IA3'. Merge it by PEFT"),
        ({"peft_type": None}, UnsupportedError, "of a kind that is not merged here"),
        ({"target_parameters": ["experts.gate"]}, UnsupportedError, "'target_parameters'"),
        ({"trainable_token_indices": [1]}, UnsupportedError, "'trainable_token_indices'"),
        ({"lora_bias": True}, UnsupportedError, "'lora_bias'"),
        ({"layer_replication": [[0, 2], [1, 3]]}, UnsupportedError, "'layer_replication'"),
        ({"setting_of_tomorrow": 3}, UnsupportedError, "'setting_of_tomorrow'"),
        ({"init_lora_weights": "pissa"}, UnsupportedError, "'pissa'.*path_initial_model_for_weight_conversion"),
        ({"r": 0}, CheckpointError, "r is no rank"),
        ({"r": 2.5}, CheckpointError, "r is no rank"),
        ({"lora_alpha": "x"}, CheckpointError, "lora_alpha is no number"),
        ({"lora_alpha": True}, CheckpointError, "lora_alpha is no number"),
        ({"use_rslora": 1}, CheckpointError, "use_rslora is neither true nor false"),
        ({"rank_pattern": [1]}, CheckpointError, "rank_pattern is no object"),
        ({"rank_pattern": {"down": 0}}, CheckpointError, "down is no rank"),
        ({"alpha_pattern": {"(": 1}}, CheckpointError, "alpha_pattern has a bad expression"),
        ({"alpha_pattern": {"(.|.|.|.|.|.|.|.)+!": 1}}, UnsupportedError, "takes too long"),
        ({"rank_pattern": {"x" * 5000: 1}}, CheckpointError, "a regular expression is too long"),
        ({"modules_to_save": "lm_head"}, CheckpointError, "modules_to_save is no list"),
        ({"use_dora": True}, CheckpointError, "config of the adapter and its tensors differ"),
    ],
)
def test_settings(config: dict[str, Any], kind: type[DeltapackError], words: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", DOWN, **config)
    base = write_folder(tmp_path / "base", base_model())
    with pytest.raises(kind, match=f"(?s){words}"):
        merged(base, folder)
    with pytest.raises(kind, match=f"(?s){words}"):
        deltapack.compress(base, folder, tmp_path / "x.dpk")
    assert not (tmp_path / "x.dpk").exists()


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", CheckpointError, "not valid JSON"),
        ("[]", CheckpointError, "not an object"),
        ('{"r": 1, "r": 2}', CheckpointError, "appears twice"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', CheckpointError, "NaN is not JSON"),
        (json.dumps({"x": "y" * (1 << 22)}), LimitError, "too long"),
    ],
)
def test_damaged_configs(text: str, kind: type[DeltapackError], words: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", DOWN)
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(kind, match=words):
        merged(write_folder(tmp_path / "base", base_model()), folder)


A, B = (f"{START}layer.down.lora_{part}.weight" for part in "AB")


@pytest.mark.parametrize(
    ("change", "config", "kind", "words"),
    [
        ({"unet.lora_A.weight": random_tensor(1, (4, 4))}, {}, UnsupportedError, "not named as PEFT does"),
        ({f"{START}x.lora_B.bias": random_tensor(1, (4,))}, {}, UnsupportedError, "not merged here"),
        ({f"{START}x.token_adapter.trainable_tokens_delta": random_tensor(1, (4, 4))}, {}, UnsupportedError, "not merged here"),
        (
            {f"{START}layer.down.lora_A.default.weight": random_tensor(1, (4, 4))},
            {},
            CheckpointError,
            "two tensors of the adapter are for one",
        ),
        ({A: None}, {}, CheckpointError, "factors of the module are missing"),
        ({B: random_tensor(1, (ROWS, 5))}, {}, CheckpointError, "do not fit one another"),
        ({}, {"r": 8}, CheckpointError, "expected 8 rows, the rank that adapter_config.json says, found [4, 36]"),
        ({A: random_tensor(1, (4,))}, {}, CheckpointError, "do not fit one another"),
        ({A: random_tensor(1, (0, COLUMNS)), B: random_tensor(1, (ROWS, 0))}, {}, CheckpointError, "another rank"),
        ({A: random_tensor(1, (4, COLUMNS), "f64")}, {}, UnsupportedError, "a type that is not merged here"),
        ({A: random_tensor(1, (4, COLUMNS + 1))}, {}, BaseMismatchError, "weight of another shape"),
        (lora("layer.gone", ROWS, COLUMNS), {}, BaseMismatchError, "lacks: expected 'layer.gone.weight'"),
        (lora("layer.down.base_layer", ROWS, COLUMNS), {}, UnsupportedError, "inside of a module"),
        ({f"{START}score.weight": random_tensor(1, (3, 3))}, {}, BaseMismatchError, "lacks: expected 'score.weight'"),
        ({f"{START}layer.norm.weight": random_tensor(1, (3,))}, {}, BaseMismatchError, "another shape"),
        ({f"{START}positions": random_tensor(1, (9,))}, {}, UnsupportedError, "of another kind"),
        ({f"{START}layer.down.lora_magnitude_vector": random_tensor(1, (ROWS,))}, {}, CheckpointError, "use_dora is false"),
        ({f"{START}layer.down.lora_magnitude_vector": random_tensor(1, (7,))}, {"use_dora": True}, CheckpointError, "not one a row"),
        (
            lora("layer.square", ROWS, ROWS) | {A: random_tensor(1, (4, ROWS)), B: random_tensor(1, (COLUMNS, 4))},
            {},
            UnsupportedError,
            "which way round the square weight",
        ),
    ],
)
def test_tensors(change: dict[str, Any], config: dict[str, Any], kind: type[DeltapackError], words: str, tmp_path: Path) -> None:
    adapter = {name: tensor for name, tensor in (DOWN | change).items() if tensor is not None}
    error = refused(base_model(), adapter, tmp_path, config)
    assert type(error) is kind
    assert words in str(error)


@pytest.mark.parametrize(
    "replace",
    [
        lambda base: base | {"layer.down.weight": whole("i8", [[1] * COLUMNS] * ROWS)},
        lambda base: base | {"layer.down.weight": random_tensor(1, (ROWS, COLUMNS), "f8_e4m3fn")},
        lambda base: base | {"layer.down.weight": random_tensor(1, (ROWS, COLUMNS), "f64")},
    ],
    ids=["i8", "f8", "f64"],
)
def test_types_of_the_base(replace: Callable[[Model], Model], tmp_path: Path) -> None:
    error = refused(replace(base_model()), DOWN, tmp_path, {})
    assert isinstance(error, UnsupportedError)
    assert "Take the base in bf16, f16 or f32" in str(error)


def test_a_quantised_base(tmp_path: Path) -> None:
    base = base_model() | {"layer.down.qweight": whole("i32", [1, 2])}
    del base["layer.down.weight"]
    error = refused(base, DOWN, tmp_path, {})
    assert isinstance(error, BaseMismatchError)
    assert "layer.down.qweight: is it quantised?" in str(error)


HEAD = {f"{START}{name}.weight": random_tensor(1, (WORDS, COLUMNS)) for name in ("model.embed_tokens", "lm_head")}
OF_EMBEDDING = {
    f"{START}model.embed_tokens.lora_embedding_A": random_tensor(1, (4, WORDS)),
    f"{START}model.embed_tokens.lora_embedding_B": random_tensor(2, (COLUMNS, 4)),
}
TIED = {"model.embed_tokens.weight": random_tensor(3, (WORDS, COLUMNS))}


@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}, {"architectures": ["LlamaForCausalLM"]}]
)
def test_tied_embeddings(config: dict[str, Any], tmp_path: Path) -> None:
    """Both names saved whole and alike are one tensor; else there is no right result."""
    files = {"config.json": json.dumps(config)}
    saved: dict[str, Any] = {"modules_to_save": ["embed_tokens", "lm_head"]}
    base, alike = write_folder(tmp_path / "base", TIED, files), write_adapter(tmp_path / "alike", HEAD, **saved)
    assert merged(base, alike) == {"model.embed_tokens.weight": HEAD[f"{START}lm_head.weight"]}
    for number, adapter in enumerate(
        [OF_EMBEDDING, dict([next(iter(HEAD.items()))]), HEAD | {f"{START}lm_head.weight": random_tensor(9, (WORDS, COLUMNS))}]
    ):
        with pytest.raises(UnsupportedError, match=r"changes a tied tensor.*tie_word_embeddings=False"):
            merged(base, write_adapter(tmp_path / f"a{number}", adapter, **saved))


def test_factors_of_a_head_that_is_the_embedding(tmp_path: Path) -> None:
    error = refused(TIED, lora("lm_head", WORDS, COLUMNS), tmp_path, {})
    assert isinstance(error, BaseMismatchError)
    assert "Is it tied to the embedding? Load the base with tie_word_embeddings=False" in str(error)


def test_names_of_one_tensor_in_a_torch_file(tmp_path: Path) -> None:
    weight = torch.from_numpy(TIED["model.embed_tokens.weight"].bits)
    (tmp_path / "base").mkdir()
    torch.save({"lm_head.weight": weight, "model.embed_tokens.weight": weight}, tmp_path / "base" / "pytorch_model.bin")
    alike = merged(tmp_path / "base", write_adapter(tmp_path / "alike", HEAD))
    assert list(alike.values()) == [HEAD[f"{START}lm_head.weight"]]
    with pytest.raises(UnsupportedError, match="changes a tied tensor"):
        merged(tmp_path / "base", write_adapter(tmp_path / "factors", lora("lm_head", WORDS, COLUMNS)))


def test_a_pointer_instead_of_the_file(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", DOWN)
    (folder / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(NotACheckpointError, match=r"a git-lfs pointer.*git lfs pull"):
        merged(write_folder(tmp_path / "base", base_model()), folder)


def test_embeddings_that_are_not_tied(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", TIED, {"config.json": '{"architectures": ["LlamaModel"]}'})
    assert merged(base, write_adapter(tmp_path / "a", OF_EMBEDDING)) != TIED


def test_a_cut_file(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", DOWN)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError):
        merged(write_folder(tmp_path / "base", base_model()), folder)


def test_an_adapter_without_its_weights_is_not_told_to_be_merged(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", DOWN)
    (folder / "adapter_model.safetensors").unlink()
    base = write_folder(tmp_path / "base", base_model())
    with pytest.raises(DeltapackError, match="config of an adapter, but not its weights") as caught:
        deltapack.compress(base, folder, tmp_path / "x.dpk")
    assert "adapter_model.safetensors is missing" in str(caught.value) and "Merge" not in str(caught.value)


def test_an_adapter_as_base_is_still_none(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", DOWN)
    tuned = write_file(tmp_path / "tuned.safetensors", base_model())
    with pytest.raises(DeltapackError, match="holds an adapter"):
        deltapack.compress(folder, tuned, tmp_path / "x.dpk")


def test_settings_for_many_modules(tmp_path: Path) -> None:
    """Each name is looked up, and each expression understood once: tried one by one, 20,000 of them take minutes."""
    names = [f"x{number}.y" for number in range(4000)]
    folder = write_adapter(tmp_path / "adapter", DOWN, modules_to_save=names, rank_pattern={f"a.*{name}": 2 for name in names})
    settings = read_settings(folder / "adapter_config.json")
    assert all(isinstance(pattern, re.Pattern) for pattern in settings.ranks) and len(settings.ranks) == 4000
    assert settings.rank_of("x1") == 4 and settings.rank_of("model.abcx17.y") == 2
    assert all(settings.is_saved(f"model.{name}.weight") for name in names)
    assert not any(map(settings.is_saved, ("x1", "x1.y", "x1.z.weight", "ax1.y.weight", "x1.y2.weight")))
