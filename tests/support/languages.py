"""Language models of a few thousand weights with a byte-level tokenizer, trained in a second on a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

WORDS = ("the cat sat on the mat", "a dog ran in the park", "the sun is over the sea", "one fish and two birds")


@dataclass(frozen=True)
class Languages:
    """A base, a fine-tune that learned a text, a text like it, and packs by the share that they dropped."""

    base: Path
    finetuned: Path
    text: Path
    packs: dict[float, Path]


def text_of(seed: int, sentences: int = 60) -> str:
    """Sentences of few words, so that a tiny model learns them."""
    return "".join(f"{WORDS[(number * number + seed) % len(WORDS)]}.\n" for number in range(sentences))


def save_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def tokens_of(text: str) -> torch.Tensor:
    """What the tokenizer makes of a text."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = {letter: number for number, letter in enumerate(letters)}
    found = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return torch.tensor([numbers[letter] for word, _ in found for letter in word])


@cache
def _trained() -> tuple[Any, Any]:
    """A base and a fine-tune that has learned the sentences."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
    )
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config)
    tuned = transformers.LlamaForCausalLM(config)
    tuned.load_state_dict(base.state_dict())
    ids = tokens_of(text_of(0))
    windows = ids[: len(ids) // 32 * 32].view(-1, 32)
    steps = torch.optim.AdamW(tuned.parameters(), 3e-3)
    for _ in range(25):
        loss = tuned(input_ids=windows, labels=windows).loss
        loss.backward()
        steps.step()
        steps.zero_grad()
    return base, tuned


def language_models(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path, Path]:
    """Save base, fine-tune and a text that it does well on; return their paths."""
    for name, model in zip(("base", "finetuned"), _trained(), strict=True):
        kept = model.state_dict()
        model.to(dtype).save_pretrained(folder / name)
        model.float().load_state_dict(kept)
        save_tokenizer(folder / name)
    text = folder / "text.txt"
    text.write_text(text_of(1))
    return folder / "base", folder / "finetuned", text
