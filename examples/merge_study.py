"""Which merge method keeps most of three fine-tunes, with and without dropping? Trains, packs, merges and measures small models.

Usage: python examples/merge_study.py [FOLDER]

The base and two of the fine-tunes (code, prose) are those of `deltapack demo`, the third learns type stubs. Every merge is measured on
held-out text of all three. Writes merge_study.csv and, with matplotlib, merge_study.png into the folder; takes a few minutes.
"""

import argparse
import csv
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import deltapack
from deltapack.demo.corpus import Folders, Text, read_corpus
from deltapack.demo.flow import DemoSize, run_demo
from deltapack.demo.model import load_model, save_model
from deltapack.demo.training import bits_per_byte, fine_tune
from deltapack.packing.recipe import Recipe

DOMAINS = ("code", "prose", "stubs")
DROP_RATES = (0.0, 0.5, 0.9, 0.99)
TRIMMED = "ties 0.6 of the largest"
"""TIES as published: the packs keep the largest differences instead of random ones."""


@dataclass(frozen=True)
class Method:
    """A row of the study: its label and the arguments of `deltapack.merge`."""

    label: str
    method: str
    weight: float | None = None
    parameters: Mapping[str, float] | None = None


METHODS = (
    Method("average", "average"),
    Method("linear 0.6", "linear", 0.6),
    Method("linear 1", "linear", 1.0),
    Method("ties, normalized", "ties", 1.0),
    Method("ties 0.6 (dare_ties)", "dare_ties", 0.6),
    Method("ties 1 (dare_ties)", "dare_ties", 1.0),
    Method(TRIMMED, "ties", 0.6, {"normalize": False}),
    Method("sce", "sce"),
    Method("ram", "ram"),
    Method("model_stock", "model_stock"),
)


@dataclass(frozen=True)
class Row:
    """Held-out bits per byte by domain, and the mean share of the fine-tunes' gains that is kept."""

    label: str
    drop_rate: float | None
    loss: Mapping[str, float]
    retention: float


def stubs_text(folder: Path, size: int) -> Text:
    """Type stubs in a folder, every sixth file held out."""
    files = sorted(folder.rglob("*.pyi"), key=lambda path: (path.stat().st_size % 97, path.as_posix()))
    texts = [path.read_bytes()[:16_000] for path in files]
    held_out = texts[2::6]
    train = [text for number, text in enumerate(texts) if number % 6 != 2]
    return Text(b"".join(train)[:size], b"".join(held_out)[:size])


def prepare(folder: Path, size: DemoSize, sources: Folders | None, stubs: Path) -> dict[str, bytes]:
    """Train what is missing; return the held-out texts."""
    if not (folder / "base").is_dir():
        run_demo(folder, echo=print, size=size, sources=sources)
    corpus, third = read_corpus(size.text_bytes, sources), stubs_text(stubs, size.text_bytes)
    if not (folder / "stubs-finetuned").is_dir():
        print("fine-tuning on type stubs")
        base, shape = load_model(folder / "base")
        save_model(folder / "stubs-finetuned", fine_tune(base, shape, third.train, size.fine_tune, seed=7), shape)
    return {"code": corpus.code.held_out, "prose": corpus.prose.held_out, "stubs": third.held_out}


class Study:
    """Merges and measures."""

    def __init__(self, folder: Path, held_out: Mapping[str, bytes], windows: int) -> None:
        self.folder, self.held_out, self.windows = folder, held_out, windows
        self.base = self.measure(folder / "base")
        self.tuned = {domain: self.measure(folder / f"{domain}-finetuned") for domain in DOMAINS}

    def rows(self) -> Iterator[Row]:
        """Yield the base, the fine-tunes, and every merge."""
        yield self.row("base", None, self.base)
        for domain in DOMAINS:
            yield self.row(f"fine-tune on {domain}", None, self.tuned[domain])
        for drop_rate in DROP_RATES:
            random, largest = (self.packs(drop_rate, sparsify) for sparsify in ("dare", "magnitude"))
            for method in METHODS:
                yield self.row(method.label, drop_rate, self.merge(method, largest if method.label == TRIMMED else random))

    def row(self, label: str, drop_rate: float | None, loss: Mapping[str, float]) -> Row:
        """Return a row; 1 is as good as each fine-tune on its own text, 0 as the base."""
        kept = [(self.base[domain] - loss[domain]) / (self.base[domain] - self.tuned[domain][domain]) for domain in DOMAINS]
        return Row(label, drop_rate, loss, sum(kept) / len(kept))

    def packs(self, drop_rate: float, sparsify: str) -> list[Path]:
        """Pack the fine-tunes."""
        out = []
        for domain in DOMAINS:
            out.append(self.folder / f"study-{domain}-{sparsify}-{drop_rate:g}.dpk")
            recipe = Recipe(drop_rate=drop_rate, sparsify=sparsify)
            deltapack.compress(self.folder / "base", self.folder / f"{domain}-finetuned", out[-1], recipe=recipe, force=True)
        return out

    def merge(self, method: Method, packs: Sequence[Path]) -> dict[str, float]:
        """Merge and measure."""
        out = self.folder / "study-merged"
        weights = None if method.weight is None else [method.weight]
        deltapack.merge(self.folder / "base", packs, out, method=method.method, weights=weights, parameters=method.parameters, force=True)
        return self.measure(out)

    def measure(self, folder: Path) -> dict[str, float]:
        """Return held-out bits per byte by domain."""
        parameters, shape = load_model(folder)
        return {domain: bits_per_byte(parameters, shape, text, self.windows) for domain, text in self.held_out.items()}


def report(rows: Sequence[Row], folder: Path) -> None:
    """Print and write the table."""
    print(f"\n{'model':26}{'drop rate':>10}" + "".join(f"{domain:>9}" for domain in DOMAINS) + f"{'retention':>11}")
    for row in rows:
        rate = "" if row.drop_rate is None else f"{row.drop_rate:g}"
        print(f"{row.label:26}{rate:>10}" + "".join(f"{row.loss[domain]:9.3f}" for domain in DOMAINS) + f"{100 * row.retention:9.0f} %")
    print("\nHeld-out bits per byte, less is better. Retention: mean over the texts of (base - model) / (base - its fine-tune).")
    with (folder / "merge_study.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "drop_rate", *DOMAINS, "retention"])
        writer.writerows([row.label, row.drop_rate, *(row.loss[domain] for domain in DOMAINS), row.retention] for row in rows)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw retention over the drop rate, one line for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for method in METHODS:
        points = [(row.drop_rate, 100 * row.retention) for row in rows if row.label == method.label and row.drop_rate is not None]
        axes.plot(np.arange(len(points)), [retention for _, retention in points], marker="o", label=method.label)
    axes.set_xticks(np.arange(len(DROP_RATES)), [f"{rate:g}" for rate in DROP_RATES])
    axes.set(
        xlabel="drop rate",
        ylabel="mean retention of three fine-tunes, % (below -100 not shown)",
        title="Merging three fine-tunes of one base",
    )
    axes.set_ylim(-100, 100)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    print(path)


def main(folder: Path, size: DemoSize | None = None, sources: Folders | None = None, stubs: Path | None = None) -> list[Row]:
    """Run the study; the arguments after `folder` are for tests."""
    size = size or DemoSize()
    held_out = prepare(folder, size, sources, stubs or Path(np.__file__).parent)
    rows = list(Study(folder, held_out, size.windows).rows())
    report(rows, folder)
    if importlib.util.find_spec("matplotlib") is not None:
        plot(rows, folder / "merge_study.png")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("deltapack-demo"), metavar="FOLDER")
    try:
        main(parser.parse_args().folder)
    except deltapack.DeltapackError as error:
        sys.exit(f"Error: {error}")
