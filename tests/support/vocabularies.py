"""Small models whose tokenizer real libraries read, and fine-tunes of them that add tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deltapack
from deltapack import Recipe
from support.builders import Model, Tensor, moved, random_tensor, write_folder

WORDS = {chr(ord("a") + number): number for number in range(26)} | {chr(ord("A") + number): 26 + number for number in range(12)}
BASE_TOKENS = {38: "<s>", 39: "</s>"}
ROWS, WIDTH = 40, 32
GROWING = ("lm_head.weight", "model.embed_tokens.weight")


def token(key: int, content: str, **flags: bool) -> dict[str, Any]:
    """A token as tokenizer.json lists it."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": content.startswith("<")}
    return {"id": key, "content": content} | plain | flags


def tokenizer_json(added: Sequence[Mapping[str, Any]], words: Mapping[str, int] = WORDS) -> dict[str, Any]:
    """A tokenizer of single letters."""
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": dict(words), "merges": []}
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {"version": "1.0", **dict.fromkeys(parts), "added_tokens": list(added), "model": model}


def files_of(added: Sequence[Mapping[str, Any]], rows: int, new: Sequence[str] = (), words: Mapping[str, int] = WORDS) -> dict[str, str]:
    """Config and tokenizer files as transformers 4 writes them."""
    decoder = {str(row["id"]): {key: value for key, value in row.items() if key != "id"} for row in added}
    special = {"bos_token": "<s>", "eos_token": "</s>"} | ({"additional_special_tokens": list(new)} if new else {})
    documents = {
        "tokenizer.json": tokenizer_json(added, words),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": decoder, **special},
        "special_tokens_map.json": special,
        "added_tokens.json": {row["content"]: row["id"] for row in added},
        "config.json": {"model_type": "llama", "vocab_size": rows, "text_config": {"vocab_size": rows}},
    }
    return {name: json.dumps(document) for name, document in documents.items()}


@dataclass(frozen=True)
class Tuned:
    """A fine-tune: tokens by id, or whole entries of tokenizer.json; rows in all; what its files are, if not the usual."""

    tokens: Mapping[int, str | Mapping[str, Any]] = field(default_factory=dict)
    rows: int | None = None
    files: Mapping[str, str | None] = field(default_factory=dict)
    tensors: Model = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A base folder, packs and the fine-tunes that they were made from."""

    base: Path
    packs: tuple[Path, ...]
    tuned: tuple[Model, ...]


def family(folder: Path, *tunings: Tuned, rows: int = ROWS, base_tokens: Mapping[int, str] = BASE_TOKENS, dtype: str = "f32") -> Family:
    """Write a base and its fine-tunes, and compress them to `0.dpk`, `1.dpk` and so on."""
    folder.mkdir(exist_ok=True)
    base: Model = {name: random_tensor(number, (rows, WIDTH), dtype) for number, name in enumerate(GROWING)}
    base["model.norm.weight"] = random_tensor(9, (WIDTH,), dtype)
    known = {key: token(key, content) for key, content in base_tokens.items()}
    write_folder(folder / "base", base, files_of(list(known.values()), rows))
    packs, tuned_models = [], []
    for number, tuning in enumerate(tunings):
        own = {key: token(key, said) if isinstance(said, str) else dict(said) for key, said in tuning.tokens.items()}
        count = tuning.rows or max([rows, *(key + 1 for key in own)])
        model = {name: _grown(tensor, count, 100 * number + place) for place, (name, tensor) in enumerate(base.items())} | tuning.tensors
        new = [row["content"] for row in own.values() if row["special"]]
        files = files_of([row for _, row in sorted((known | own).items())], count, new) | dict(tuning.files)
        write_folder(folder / f"{number}", model, {name: text for name, text in files.items() if text is not None})
        packs.append(folder / f"{number}.dpk")
        # Some have whole tables of their own.
        recipe = Recipe(**({"drop_rate": 0.9} | dict(tuning.recipe)))
        deltapack.compress(folder / "base", folder / f"{number}", packs[-1], recipe=recipe, allow_unrelated=True)
        tuned_models.append(model)
    return Family(folder / "base", tuple(packs), tuple(tuned_models))


def _grown(tensor: Tensor, rows: int, seed: int) -> Tensor:
    if len(tensor.shape) == 1:
        return moved(tensor, seed)
    out = random_tensor(seed + 50, (max(rows, tensor.shape[0]), *tensor.shape[1:]), tensor.dtype)
    out.bits[: tensor.shape[0]] = moved(tensor, seed).bits
    return out
