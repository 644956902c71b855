"""Use case: what packs keep of a fine-tune, measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deltapack.analysis.evaluation_page import evaluation_page
from deltapack.analysis.measuring import Asked, Value, open_judge, retention_of
from deltapack.analysis.pages import check_page, write_page
from deltapack.analysis.reports import EvaluateReport, EvaluateRow
from deltapack.analysis.scoring import Score
from deltapack.checking import as_checkpoint, as_path, as_paths
from deltapack.checkpoint import open_checkpoint
from deltapack.format.reader import PackReader
from deltapack.packing.adapter_packs import packs_of_adapters
from deltapack.packing.kinship import shortened
from deltapack.reports import Progress
from deltapack.restoring.applying import apply
from deltapack.sources.inputs import guarded, note_named
from deltapack.sources.locks import scratch

__all__ = ["evaluate"]

REFERENCE_BYTES = 512 << 20
"""Predictions of the fine-tune that are kept to compare others with."""
TOKENS, WINDOW = 16_384, 512


@guarded
def evaluate(
    base: str | Path,
    finetuned: str | Path,
    packs: Sequence[str | Path],
    *,
    text: str | Path | None = None,
    score: Score | None = None,
    tokens: int = TOKENS,
    window: int = WINDOW,
    device: Any = None,
    dtype: str = "f32",
    html: str | Path | None = None,
    force: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> EvaluateReport:
    """Measure base, fine-tune and what packs restore, on a text that none of them was trained on, or by a program.

    On a text, models are language models of transformers. The fine-tune is read first; its predictions for the first windows, up to 512 MiB
    of them, are kept for KL and agreement. Then the base is loaded, and becomes what each pack makes of it in place; a pack that cannot be
    activated on a live model, as it has new tokens or another shape, is loaded anew. One model is in memory at a time, and a copy of the
    base where `dtype` is another than its own.

    A program gets each model as a checkpoint, those of packs restored into a temporary folder.

    Args:
        base: The base: a Hugging Face folder; where `score` measures, anything that `deltapack.apply` takes.
        finetuned: The fine-tune, likewise, or the folder of a PEFT adapter, which is merged into a temporary folder. Its tokenizer reads
            the text.
        packs: The packs, each made from `base`.
        text: A file of plain text in UTF-8.
        score: Instead of a text: a command in which `{model}` stands for the path of a checkpoint and that prints a number as its last
            word, or a function from such a path to a number. Which way is better does not matter.
        tokens: Most tokens that are read; of a longer text windows spread over all of it.
        window: Tokens that a model sees at a time.
        device: Where models compute, such as `"cuda"`; the CPU unless given.
        dtype: Type in which they compute, or `"own"` for that of the checkpoint; bf16 puts a floor of about 0.001 under KL.
        html: A page with the table and plots to write, one file that needs nothing else.
        force: Whether to replace an existing page.
        workers: Threads that decode; every core unless given.
        progress: Called with tokens (or models) measured so far and in all.

    Returns:
        A row for each model, and warnings.

    Raises:
        BackendError: transformers is not installed, or there is no such device.
        BaseMismatchError: `base` is not the base of a pack.
        CheckpointError: A checkpoint is damaged, or lacks weights of the model.
        FormatError: A pack is damaged.
        NonFiniteError: A loss or a score is NaN or infinite.
        OutputError: `html` exists or cannot be written.
        RecipeError: An argument is out of range, the text is too short or there is no tokenizer for it, transformers does not know the
            model, the command fails or prints no number.
    """
    asked = Asked(text, score, tokens, window, device, dtype, REFERENCE_BYTES, workers, progress)
    base, finetuned, paths = as_checkpoint("base", base), as_checkpoint("finetuned", finetuned), as_paths("packs", packs)
    note_named(base, finetuned, *paths)
    out = None if html is None else as_path("html", html)
    if out is not None:
        check_page(out, force=force)
    pack_bytes = [_pack_bytes(path) for path in paths]
    with ExitStack() as stack:
        whole = _whole(stack, base, finetuned, workers)
        sizes = _sizes(base, whole)
        judge = stack.enter_context(open_judge(base, asked, whole, 2 + len(paths)))
        tuned = judge.finetuned(whole)
        start = judge.base()
        rows = [_row("base", sizes[0][0], None, start, start, tuned), _row("fine-tune", sizes[1][0], None, tuned, start, tuned)]
        for path, size in zip(paths, pack_bytes, strict=True):
            rows.append(_row(str(path), size, 8 * size / max(1, sizes[1][1]), judge.pack(path), start, tuned))
        read = judge.unit if text is not None else 0
    measured = "loss" if score is None else "score"
    report = EvaluateReport(base, finetuned, measured, read, rows, [*_warnings(start, tuned, measured), *_farther(rows)])
    if out is not None:
        write_page(evaluation_page(report), out, force=force)
    return report


def _whole(stack: ExitStack, base: Path, finetuned: Path, workers: int | None) -> Path:
    """Return the fine-tune as a checkpoint: what an adapter makes of the base is written into a temporary folder."""
    packs, _ = packs_of_adapters(stack, base, [finetuned], None, workers=workers)
    if packs == [finetuned]:
        return finetuned
    folder = stack.enter_context(scratch())
    return apply(base, packs[0], folder / packs[0].stem, workers=workers).out


def _sizes(*checkpoints: Path) -> list[tuple[int, int]]:
    """Return bytes and elements of the tensors of each checkpoint."""
    found = []
    for path in checkpoints:
        with open_checkpoint(path) as opened:
            tensors = opened.tensors.values()
            found.append((sum(tensor.nbytes for tensor in tensors), sum(tensor.numel for tensor in tensors)))
    return found


def _pack_bytes(path: Path) -> int:
    with PackReader(path) as reader:
        return reader.file_bytes


def _row(name: str, size: int, bits: float | None, value: Value, base: Value, tuned: Value) -> EvaluateRow:
    kept, error = retention_of(value, base, tuned)
    if value is tuned and tuned.losses is not None:
        return EvaluateRow(name, size, bits, value.number, 0.0, 1.0, kept, error)
    return EvaluateRow(name, size, bits, value.number, value.kl, value.agreement, kept, error)


def _farther(rows: Sequence[EvaluateRow]) -> list[str]:
    """Say which packs make of the base what is farther from the fine-tune than the base is."""
    base, _, *packs = rows
    far = [row.name for row in packs if row.kl is not None and base.kl is not None and row.kl > base.kl > 0]
    if not far:
        return []
    return [f"{shortened(far)}: farther from the fine-tune's predictions (KL) than the base is: of another fine-tune, or in too few bits."]


def _warnings(base: Value, tuned: Value, measured: str) -> list[str]:
    """Say where retention means nothing."""
    if retention_of(tuned, base, tuned)[0] is not None:
        return []
    if measured == "score":
        return ["base and fine-tune have the same score, so there is no gain that a pack could keep: measure what the fine-tune learned."]
    return [
        f"on this text the fine-tune ({tuned.number:.4f}) is no better than the base ({base.number:.4f}) beyond chance, so retention means "
        "nothing: take a text of what the fine-tune learned, or more of it; KL still tells what a pack changes."
    ]
