"""The pairs that people published: sentence embeddings (A) and classes of reactions (B1), measured against the fine-tune's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.assets import fetch
from benchmarks.fidelity.measuring import Measures, Subject
from benchmarks.fidelity.reactions import reactions
from benchmarks.sentences import SENTENCES

__all__ = ["load_state", "real_subject"]

State = dict[str, Tensor]


def real_subject(name: str) -> Subject:
    """Return pair A, whose measure is the cosine of embeddings, or B1, whose measures are those of classes.

    Raises:
        AssetsUnavailableError: It cannot be had.
    """
    base, tuned = fetch(name)
    states = load_state(base), load_state(tuned)
    measure = _Embeddings(tuned, states[1]) if name == "A" else _Classes(tuned, states[1])
    return Subject(f"pair {name}", base, tuned, states, measure)


def load_state(folder: Path) -> State:
    """Read the floating-point weights of a folder of one file."""
    path = folder / "model.safetensors"
    state = load_file(path) if path.exists() else torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name: tensor.float() for name, tensor in state.items() if tensor.is_floating_point()}


class _Embeddings:
    """Mean cosine of sentences' embeddings to the fine-tune's."""

    def __init__(self, folder: Path, tuned: State) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._batch = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32)  # in eval mode
        self._wanted = self._embedded(tuned)

    @torch.inference_mode()
    def _embedded(self, weights: Mapping[str, Tensor]) -> Tensor:
        self._model.load_state_dict(dict(weights), strict=False)
        hidden = self._model(**self._batch).last_hidden_state
        mask = self._batch["attention_mask"].unsqueeze(-1)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def __call__(self, weights: Mapping[str, Tensor]) -> Measures:
        return {"cosine": float((self._embedded(weights) * self._wanted).sum(dim=1).mean())}


class _Classes:
    """Divergence from the fine-tune's classes of reactions, and how often the likeliest is the same."""

    def __init__(self, folder: Path, tuned: State) -> None:
        from transformers import BertForSequenceClassification, BertTokenizer

        self._batch = BertTokenizer.from_pretrained(folder)(reactions(), padding=True, return_tensors="pt")
        self._model = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        self._wanted = self._classes(tuned)

    @torch.inference_mode()
    def _classes(self, weights: Mapping[str, Tensor]) -> Tensor:
        self._model.load_state_dict(dict(weights), strict=False)
        return F.log_softmax(self._model(**self._batch).logits, dim=-1)

    def __call__(self, weights: Mapping[str, Tensor]) -> Measures:
        found = self._classes(weights)
        same = found.argmax(dim=1) == self._wanted.argmax(dim=1)
        return {"kl": float(F.kl_div(found, self._wanted, reduction="batchmean", log_target=True)), "agreement": float(same.float().mean())}
