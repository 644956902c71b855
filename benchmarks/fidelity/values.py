"""How good: error of the values by codec, what `auto` chooses, and how near a restored model is to its fine-tune."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

import deltapack
from benchmarks.command import main
from benchmarks.pairs import Pair, real_pairs, synthetic_pair
from benchmarks.results import Cell, Section, Table, progress
from benchmarks.sentences import SENTENCES
from deltapack.checkpoint import open_checkpoint
from deltapack.format.codecs import VALUE_CODECS
from deltapack.kernels.reference import difference

CODECS = tuple(VALUE_CODECS)
LOSSY = ("auto", *(row.name for row in VALUE_CODECS.values() if row.scaled))
DROP_RATES = (0.5, 0.9, 0.99)
ERROR_HEADERS = ("pair", "drop", "values", "rel. squared error", "SNR dB", "of DARE's own noise %", "bits/weight")
AUTO_HEADERS = ("pair", "drop", "tensors by codec", "elements by codec %", "rel. squared error", "bits/weight")
MODEL_HEADERS = ("drop", "values", "mean cosine", "lowest", "mean cosine, rescale 1", "lowest, rescale 1", "bits/weight")
Embed = Callable[[Path], NDArray[np.float32]]


def measure(quick: bool) -> Section:
    pairs, missing = real_pairs()
    errors: list[tuple[Cell, ...]] = []
    autos: list[tuple[Cell, ...]] = []
    with synthetic_pair(quick=True) as made, TemporaryDirectory() as folder:
        for pair in (made, *(pair for pair in pairs if pair.name == "A" or not quick)):
            for drop in (0.9,) if quick else DROP_RATES:
                errors += _error_rows(pair, drop, Path(folder))
                autos.append(_auto_row(pair, drop, Path(folder)))
    tables = [
        Table("errors", "Error of the kept values", ERROR_HEADERS, tuple(errors)),
        Table("auto", "What auto chooses", AUTO_HEADERS, tuple(autos)),
    ]
    real = {pair.name: pair for pair in pairs}
    if "A" in real:
        try:
            rows = tuple(_model_rows(real["A"], (0.9,) if quick else DROP_RATES))
            caption = f"Pair A, cosine to the fine-tune's embeddings of {len(SENTENCES)} sentences"
            tables.append(Table("embeddings", caption, MODEL_HEADERS, rows))
        except ImportError as error:
            missing.append(f"embeddings: not measured, {error}")
    notes = (
        "Relative squared error: sum of (coded - true)^2 over sum of true^2, over the kept elements of all delta tensors, not rescaled. "
        "DARE's own noise: dropping at rate p and rescaling adds p / (1 - p) of the delta's power, "
        "coding with error e adds e / (1 - p); `auto` allows e / p = 5 %.",
        "Embeddings: transformers, mean of the last hidden states over the tokens. All codecs keep the same positions (one seed), "
        "so rows of one drop rate differ by the codec alone. Rescale 1: the same pack applied without the factor 1 / (1 - p).",
        "The synthetic pair is a Llama of 11 M parameters in bf16 (`benchmarks/pairs.py`).",
        *missing,
    )
    return Section("Fidelity", "python -m benchmarks.fidelity.values", tuple(tables), notes)


def _error_rows(pair: Pair, drop: float, folder: Path) -> Iterator[tuple[Cell, ...]]:
    for values in CODECS:
        progress(f"{pair.name} error of {values} at drop {drop}")
        report, error, _ = _pack_error(pair, drop, values, folder)
        snr = -10 * float(np.log10(error)) if error else None
        yield pair.name, drop, values, error, snr, 100 * error / drop, report.delta_bits_per_weight


def _auto_row(pair: Pair, drop: float, folder: Path) -> tuple[Cell, ...]:
    report, error, chosen = _pack_error(pair, drop, "auto", folder)
    tensors: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    for codec, numel in chosen:
        tensors[codec] += 1
        elements[codec] += numel
    counts = ", ".join(f"{codec} {count}" for codec, count in tensors.most_common())
    shares = ", ".join(f"{codec} {100 * count / elements.total():.2f}" for codec, count in elements.most_common())
    return pair.name, drop, counts, shares, error, report.delta_bits_per_weight


def _pack_error(pair: Pair, drop: float, values: str, folder: Path) -> tuple[deltapack.CompressReport, float, list[tuple[str, int]]]:
    """Compress without rescaling; return the report, the relative squared error, and codec and elements of each tensor."""
    out, noise, power, chosen = folder / "out.dpk", 0.0, 0.0, []
    recipe = deltapack.Recipe(drop, values, "seeded", rescale=1.0)
    report = deltapack.compress(pair.base, pair.finetuned, out, recipe=recipe, force=True)
    with deltapack.open_pack(out) as pack, open_checkpoint(pair.base) as base, open_checkpoint(pair.finetuned) as tuned:
        for name, packed in pack.items():
            ref = packed.entry.base
            if not packed.entry.terms or ref is None:
                continue
            numel, info, own = packed.entry.common, tuned.tensors[name], base.tensors[base.aliases.get(ref.name, ref.name)]
            true = difference(base.read(own.name, 0, numel), own.dtype, tuned.read(name, 0, numel), info.dtype)
            positions, coded = packed.to_sparse()
            kept = true[positions].astype(np.float64)
            noise, power = noise + float(np.square(coded - kept).sum()), power + float(np.square(kept).sum())
            chosen.append((packed.entry.terms[0].values, numel))
    return report, noise / power, chosen


def _model_rows(pair: Pair, drop_rates: tuple[float, ...]) -> Iterator[tuple[Cell, ...]]:
    embed = _embedder(pair)
    wanted = embed(pair.finetuned)
    yield None, "base alone", *_cosines(embed(pair.base), wanted), None, None, None
    for drop in drop_rates:
        for values in LOSSY:
            progress(f"embeddings at drop {drop}, {values}")
            with TemporaryDirectory() as name:
                folder = Path(name)
                recipe = deltapack.Recipe(drop, values, "seeded")
                report = deltapack.compress(pair.base, pair.finetuned, folder / "out.dpk", recipe=recipe)
                cosines: list[float] = []
                for number, rescale in enumerate((None, 1.0)):
                    deltapack.apply(pair.base, folder / "out.dpk", folder / str(number), rescale=rescale)
                    cosines += _cosines(embed(folder / str(number)), wanted)
            yield drop, values, *cosines, report.delta_bits_per_weight


def _cosines(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean and lowest cosine of rows."""
    cosines = np.sum(found * wanted, axis=1)
    return float(cosines.mean()), float(cosines.min())


def _embedder(pair: Pair) -> Embed:
    """Return a function from a model folder to normalised embeddings `[sentences, width]`."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(pair.finetuned)
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")

    def embed(folder: Path) -> NDArray[np.float32]:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        found: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return found

    return embed


if __name__ == "__main__":
    sys.exit(main(measure))
