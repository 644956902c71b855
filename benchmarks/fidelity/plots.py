"""The study's pictures: what is kept over the bits that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fidelity.report import Mean
from benchmarks.fidelity.study import FORMER, OURS

__all__ = ["PICTURES", "draw"]

LINES = {
    OURS: ("#c0392b", "o"),
    FORMER: ("#1f6fb4", "s"),
    "DARE int4": ("#7fb2dd", "s"),
    "DAREx int4, tuned factor": ("#5aa469", "^"),
    "DELLA int4": ("#8e6bbf", "v"),
    "UltraDelta": ("#b08d57", "D"),
    "magnitude int4": ("#999999", "x"),
    "top-k sign (ComPEFT)": ("#333333", "+"),
    "low rank int4": ("#e0a030", "<"),
    "BitDelta": ("#d98cb3", "*"),
    "sign + low rank (D-QRELO)": ("#66c2c2", "P"),
    "dense int2": ("#777733", "h"),
}
FEW = (OURS, FORMER, "DAREx int4, tuned factor", "UltraDelta", "low rank int4", "BitDelta")
FIRST = "fidelity-study-first.svg"
PICTURES = {
    FIRST: (("smollm2 perl", "kl"), ("gpt perl", "retention"), ("gpt sorting", "exact match")),
    "fidelity-study-kl.svg": (("smollm2 perl", "kl"), ("smollm2 bible", "kl"), ("gpt perl", "kl"), ("gpt bible", "kl")),
    "fidelity-study-retention.svg": (
        ("gpt perl", "retention"),
        ("gpt bible", "retention"),
        ("gpt perl-long", "retention"),
        ("wide perl", "retention"),
    ),
    "fidelity-study-others.svg": (("gpt sorting", "exact match"), ("gpt sorting", "kl"), ("pair A", "cosine"), ("pair B1", "kl")),
}
"""File names, and what each panel shows of which fine-tune. The first is README's, with fewer lines."""
LABELS = {"kl": "KL to the fine-tune", "retention": "retention", "exact match": "exact match", "cosine": "cosine"}


def draw(found: Sequence[Mean], folder: Path) -> list[str]:
    """Write the pictures whose panels were measured; return their file names.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "deltapack", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    drawn = []
    known = {(mean.subject, measure) for mean in found for measure in mean.values}
    for name, panels in PICTURES.items():
        shown = [panel for panel in panels if panel in known]
        if not shown:
            continue
        columns = min(len(shown), 3 if len(shown) != 4 else 2)
        rows = -(-len(shown) // columns)
        figure, axes = pyplot.subplots(rows, columns, figsize=(3.6 * columns, 3.1 * rows), layout="constrained", squeeze=False)
        for axis, (subject, measure) in zip(axes.flat, shown, strict=False):
            _panel(axis, found, subject, measure, FEW if name == FIRST else tuple(LINES))
        handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize="small", frameon=False)
        figure.savefig(folder / name, metadata={"Date": None})
        pyplot.close(figure)
        drawn.append(name)
    return drawn


def _panel(axis: Any, found: Sequence[Mean], subject: str, measure: str, methods: Sequence[str]) -> None:
    """Draw the lines of a fine-tune: a logarithmic scale of bits, and of the divergence."""
    for method in methods:
        color, marker = LINES[method]
        chosen = sorted(
            (mean for mean in found if (mean.subject, mean.method) == (subject, method) and measure in mean.values),
            key=lambda mean: mean.bits,
        )
        points = [(mean.bits, mean.values[measure], mean.spreads[measure] / 2) for mean in chosen if mean.bits < 2.6]
        if points:
            bits, values, half = zip(*points, strict=True)
            width = 2.2 if method == OURS else 1.0
            axis.errorbar(
                bits, values, yerr=half if measure != "kl" else None, color=color, marker=marker, markersize=4, lw=width, label=method
            )
    _scales(axis, subject, measure)


def _scales(axis: Any, subject: str, measure: str) -> None:
    axis.set_xscale("log")
    axis.set(xlabel="bits a weight", ylabel=LABELS[measure], title=subject)
    ticks = (0.05, 0.1, 0.25, 0.5, 1, 2)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks((), minor=True)
    axis.grid(visible=True, alpha=0.3)
    if measure == "kl":
        axis.set_yscale("log")
    else:
        axis.set_ylim(0.8 if measure == "cosine" else 0, 1.03)
