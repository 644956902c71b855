"""What base and fine-tune say of themselves is compared; where they are equal, that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.builders import random_tensor, tuned_model, write_folder

import deltapack
from deltapack.checkpoint.sidefiles import LeftOut
from deltapack.packing.configs import compare_configs
from deltapack.packing.report import left_out_notes

BASE = {"a": random_tensor(1, (40, 30))}


@pytest.mark.parametrize(
    ("base", "finetuned", "words"),
    [
        ({}, {}, None),
        ({"model_type": "llama"}, {}, None),
        ({"model_type": "llama"}, {"model_type": ["x"]}, None),
        ({"model_type": "llama", "architectures": ["A"]}, {"model_type": "llama", "architectures": ["A"]}, None),
        ({"architectures": ["A"]}, {"architectures": None}, None),
        (
            {"model_type": "llama"},
            {"model_type": "mistral"},
            "different kinds: model_type is llama in the base and mistral in the fine-tune.",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama"}},
            {"model_type": "llava", "text_config": {"model_type": "mistral"}},
            "text_config.model_type is llama in the base and mistral in the fine-tune",
        ),
        ({"architectures": ["A"]}, {"architectures": ["B", "C"]}, "different architectures: A in the base and B, C in the fine-tune"),
    ],
)
def test_kinds_of_models_are_compared(base: dict[str, Any], finetuned: dict[str, Any], words: str | None) -> None:
    found = compare_configs(base, finetuned)
    assert (found == []) if words is None else (len(found) == 1 and words in found[0])


def test_compress_names_both(tmp_path: Path) -> None:
    for name, kind, tensors in (("base", "llama", BASE), ("tuned", "mistral", tuned_model(BASE)), ("same", "llama", BASE)):
        write_folder(tmp_path / name, tensors, {"config.json": json.dumps({"model_type": kind})})
    report = deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk")
    assert "llama in the base and mistral in the fine-tune" in report.warnings[0]
    equal = deltapack.compress(tmp_path / "base", tmp_path / "same", tmp_path / "y.dpk")
    assert len(equal.warnings) == 1 and "are equal: every tensor has the same bits" in equal.warnings[0]
    (tmp_path / "same" / "generation_config.json").write_text("{}")
    files = deltapack.compress(tmp_path / "base", tmp_path / "same", tmp_path / "z.dpk")
    assert "Only 1 side file differs." in files.warnings[0]


def test_what_is_left_out_is_told_by_reason() -> None:
    left = [LeftOut(f"{number}.png", "no use") for number in range(8)] + [LeftOut("x.bin", "weights"), LeftOut(".gitattributes", "hidden")]
    left += [LeftOut(".cache/", "hidden"), LeftOut(".env", "hidden")]
    assert left_out_notes(left) == [
        "left out 0.png, 1.png, 2.png, 3.png and 4 more: no use",
        "left out x.bin: weights",
        "left out .env: hidden",
    ]


def test_a_result_of_one_file_says_what_it_leaves_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "base", BASE)
    write_folder(tmp_path / "tuned", tuned_model(BASE), {"config.json": "{}", "tokenizer.json": "{}"})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk")
    note = "config.json, tokenizer.json not written: the output is one file; name a folder to have them, too"
    assert note in deltapack.apply(tmp_path / "base", tmp_path / "x.dpk", tmp_path / "out.safetensors").notes
    assert note not in deltapack.apply(tmp_path / "base", tmp_path / "x.dpk", tmp_path / "out").notes
