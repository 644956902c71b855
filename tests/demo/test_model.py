from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deltapack.demo.model import ModelSize, initial_parameters, load_model, logits, save_model

SIZE = ModelSize(layers=2, width=32, heads=2, inner=48, context=16)


def random_parameters() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: (tensor + 0.2 * torch.randn(tensor.shape, generator=generator)).to(torch.bfloat16).to(torch.float32)
        for name, tensor in initial_parameters(SIZE, 0).items()
    }


def test_folder_round_trip(tmp_path: Path) -> None:
    parameters = random_parameters()
    save_model(tmp_path, parameters, SIZE)
    loaded, size = load_model(tmp_path)
    assert size == SIZE
    assert loaded.keys() == parameters.keys()
    assert all(torch.equal(loaded[name], parameters[name]) for name in parameters)


def test_attention_looks_back_only() -> None:
    parameters = random_parameters()
    tokens = torch.arange(16)[None]
    changed = tokens.clone()
    changed[0, 9] = 200
    before, after = logits(parameters, SIZE, tokens), logits(parameters, SIZE, changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])


def test_every_byte_is_its_own_token(tmp_path: Path) -> None:
    save_model(tmp_path, initial_parameters(SIZE, 0), SIZE)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(256))
    assert vocabulary["A"] == ord("A")
    assert vocabulary["\u0120"] == ord(" ")


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="only to compare with")
    parameters = random_parameters()
    save_model(tmp_path, parameters, SIZE)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n    é"
    tokens = torch.tensor([tokenizer.encode(text)])
    assert tokens[0].tolist() == list(text.encode())
    assert tokenizer.decode(tokens[0]) == text
    with torch.inference_mode():
        theirs, ours = model(tokens).logits, logits(parameters, SIZE, tokens)
    # Two programs sum in different orders, so here, unlike for packs, bits are not the measure.
    assert float((theirs - ours).abs().max()) < 1e-4
