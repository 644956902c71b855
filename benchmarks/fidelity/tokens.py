"""Documents as tokens: bytes for the models that are trained here, a tokenizer's where a folder has one of another kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["encoded"]


def encoded(folder: Path, documents: Sequence[str]) -> Tensor:
    """Return documents one after the other as tokens of a model's folder, int32 [tokens]; a document ends with the end's token."""
    if json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"] == 256:
        return torch.frombuffer(bytearray("\n\n".join(documents).encode("utf-8")), dtype=torch.uint8).to(torch.int32)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts: list[int] = []
    for ids in tokenizer(list(documents), verbose=False).input_ids:
        parts += [*ids, tokenizer.bos_token_id]
    return torch.tensor(parts, dtype=torch.int32)
