"""How near a restored language model is to its fine-tune: on held-out text of the task, on text of the base's, and in answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.fidelity.llama import Shape, scores
from benchmarks.fidelity.models import FAMILIES, State, base_folder, demo_folder, exact_match, tuned_folder, weights_of
from benchmarks.fidelity.texts import IGNORED, domain, sorting, windows
from benchmarks.fidelity.tokens import encoded
from deltapack.demo.corpus import read_corpus
from deltapack.demo.flow import DemoSize

__all__ = ["MEASURES", "Measures", "Subject", "demo_subject", "language_subject"]

WINDOW = 128
BATCH = 4
MEASURES = ("kl", "agreement", "loss", "retention", "exact match", "accuracy", "cosine", "control")
FACTORS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
"""What a tuned factor is chosen from, as shares of a method's own."""
Measures = dict[str, float]
Drawn = tuple[Tensor, Tensor]
"""Tokens and targets, int64 [windows, T]."""


@dataclass(frozen=True)
class Subject:
    """A fine-tune that restored ones are measured against.

    Attributes:
        name: To print.
        base: Folder.
        tuned: Folder.
        states: Weights of base and fine-tune under the fine-tune's names; of the base, those that both have.
        measure: From all weights under the fine-tune's names to what is measured.
        tune: From a function of a factor to weights to the factor that is best on a little text that nothing is measured on.
    """

    name: str
    base: Path
    tuned: Path
    states: tuple[State, State]
    measure: Callable[[Mapping[str, Tensor]], Measures]
    tune: Callable[[Callable[[float], Mapping[str, Tensor]]], float] = field(default=lambda _: 1.0)


@dataclass(frozen=True)
class _Sample:
    """Tokens and targets [windows, T] with the fine-tune's log-probabilities of each batch of them."""

    tokens: Tensor
    targets: Tensor
    wanted: tuple[Tensor, ...]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from _batches(self.tokens, self.targets)


def language_subject(family_name: str, tune: str, count: int) -> Subject:
    """Return a fine-tune of `benchmarks.fidelity.models` with `count` held-out windows to measure it on."""
    family = FAMILIES[family_name]
    base, task = base_folder(family), family.tunes[tune].task

    def drawn(what: str, size: int, held_out: bool = True) -> Drawn:
        return _drawn(what, base, size, held_out)

    texts = drawn(task, count), drawn(task, max(2, count // 8), held_out=False), drawn("python", max(4, count // 4))
    return _subject(f"{family_name} {tune}", base, tuned_folder(family, tune), texts, answers=task == "sorting")


def demo_subject(part: str, count: int) -> Subject:
    """Return a fine-tune of `deltapack demo`: `code` or `prose`."""
    folder = demo_folder()
    corpus = read_corpus(DemoSize().text_bytes)
    text = getattr(corpus, part)

    def drawn(source: bytes, size: int, seed: int) -> Drawn:
        tokens = torch.frombuffer(bytearray(source), dtype=torch.uint8)
        return _split(windows(tokens, WINDOW + 1, size, torch.Generator().manual_seed(seed)))

    texts = drawn(text.held_out, count, 4), drawn(text.train, max(2, count // 8), 3), drawn(corpus.general[0], max(4, count // 4), 4)
    return _subject(f"demo {part}", folder / "base", folder / f"{part}-finetuned", texts)


def _subject(name: str, base_at: Path, tuned_at: Path, texts: tuple[Drawn, Drawn, Drawn], answers: bool = False) -> Subject:
    """Return a subject from what it is measured on, what factors are tuned on, and the control."""
    base, tuned, shape = weights_of(base_at), weights_of(tuned_at), Shape.of(base_at)
    sample, little = (_with_wanted(drawn, tuned, shape) for drawn in texts[:2])
    ends = [_judged(weights, shape, sample)["loss"] for weights in (base, tuned)]

    def measure(weights: Mapping[str, Tensor]) -> Measures:
        found = _judged(weights, shape, sample)
        found["retention"] = (ends[0] - found["loss"]) / (ends[0] - ends[1])
        found["control"] = _loss(weights, shape, *texts[2])
        if answers:
            found["exact match"] = exact_match(weights, shape)
        return found

    def best(make: Callable[[float], Mapping[str, Tensor]]) -> float:
        return min(FACTORS, key=lambda share: _judged(make(share), shape, little)["kl"])

    return Subject(name, base_at, tuned_at, (base, tuned), measure, best)


def _drawn(task: str, folder: Path, count: int, held_out: bool) -> Drawn:
    generator = torch.Generator().manual_seed(3 + held_out)
    if task == "sorting":
        return sorting(4 * count, generator)
    text = domain(task)
    return _split(windows(encoded(folder, text.held_out if held_out else text.train[:60]), WINDOW + 1, count, generator))


def _batches(tokens: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(tokens, BATCH), torch.split(targets, BATCH), strict=True)


def _split(part: Tensor) -> Drawn:
    return part[:, :-1], part[:, 1:]


@torch.inference_mode()
def _with_wanted(drawn: Drawn, tuned: Mapping[str, Tensor], shape: Shape) -> _Sample:
    tokens, targets = drawn
    wanted = tuple(_chosen(tuned, shape, *batch) for batch in _batches(tokens, targets))
    return _Sample(tokens, targets, wanted)


def _chosen(weights: Mapping[str, Tensor], shape: Shape, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities of all tokens at the places that count, f32 [places, vocabulary]."""
    return F.log_softmax(scores(weights, shape, tokens)[targets != IGNORED], dim=-1)


@torch.inference_mode()
def _judged(weights: Mapping[str, Tensor], shape: Shape, sample: _Sample) -> Measures:
    divergence = agreement = loss = 0.0
    places = 0
    for (tokens, targets), wanted in zip(sample.batches(), sample.wanted, strict=True):
        found, right = _chosen(weights, shape, tokens, targets), targets[targets != IGNORED]
        divergence += float(F.kl_div(found, wanted, reduction="sum", log_target=True))
        agreement += float((found.argmax(dim=1) == wanted.argmax(dim=1)).sum())
        loss += float(F.nll_loss(found, right, reduction="sum"))
        places += len(right)
    return {"kl": divergence / places, "agreement": agreement / places, "loss": loss / places}


@torch.inference_mode()
def _loss(weights: Mapping[str, Tensor], shape: Shape, tokens: Tensor, targets: Tensor) -> float:
    parts = _batches(tokens, targets)
    losses = [F.cross_entropy(scores(weights, shape, x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in parts]
    return float(torch.stack(losses).sum()) / targets.numel()
