"""The page of a pack: what it is, what it is made of, where its bytes are, and which packs stand before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltapack.analysis.charts import Axis, bar_chart, parts_chart
from deltapack.analysis.pages import check_page, fields, page, paragraphs, section, table, write_page
from deltapack.errors import SourceError
from deltapack.merging.recipe import layer_number
from deltapack.packs.inspecting import PackSummary, TensorSummary
from deltapack.packs.lineage import Lineage, log_packs
from deltapack.sources.inputs import guarded, note_named

__all__ = ["pack_page", "write_pack_page"]

_MOST_ROWS = 400
"""Tensors of the table, the largest; all are in the JSON."""
_PARTS = {
    "terms": "deltas",
    "stored": "stored tensors",
    "exact": "exact tensors",
    "digests": "digests",
    "files": "side files and headers",
    "header": "header and index",
}


@guarded
def write_pack_page(summary: PackSummary, path: Path, *, force: bool = False) -> None:
    """Write the page of a pack, with its place among the packs of its folder.

    Raises:
        OutputError: The page exists and `force` is False, it is the pack, it is no page of ours, or it cannot be written.
    """
    note_named(summary.path)
    check_page(path, force=force)
    write_page(pack_page(summary, _lineage_around(summary.path)), path, force=force)


def _lineage_around(path: Path) -> Lineage:
    """Return how the packs of a folder follow one another; of one on another machine that nobody may list, the pack alone."""
    try:
        return log_packs(path.parent)
    except SourceError:
        return log_packs([path])


def pack_page(summary: PackSummary, lineage: Lineage) -> str:
    """Return the page.

    Args:
        summary: What the pack says of itself.
        lineage: The packs around it; others than those of its own chain are not shown.
    """
    return page(
        f"What {summary.path.name} holds",
        [
            paragraphs([_said(summary)], "say"),
            fields(_fields(summary)),
            _composition(summary),
            _layers(summary.tensors),
            _tensors(summary),
            _files(summary),
            _lineage(summary, lineage),
        ],
    )


def _said(summary: PackSummary) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary.kinds.items()) or "none"
    return f"{summary.pack_bytes:,} bytes, {summary.ratio:,.1f} times smaller than the checkpoint that it restores. Tensors: {kinds}."


def _fields(summary: PackSummary) -> list[tuple[str, str]]:
    found = [
        ("id", summary.id),
        ("content id", summary.content_id),
        ("written by", summary.created_by),
        ("base", f"{summary.base_fingerprint} ({summary.base_tensors:,} tensors)"),
        ("result", f"{summary.result_fingerprint} ({summary.result_tensors:,} tensors, {summary.checkpoint_bytes:,} bytes)"),
        ("recipe", _spelt(summary.recipe)),
    ]
    if summary.delta_elements:
        found.append(("bits per weight", f"{summary.delta_bits_per_weight:.4f} of {summary.delta_elements:,} weights"))
    if summary.exact_elements:
        found.append(("exact", f"{summary.exact_elements:,} elements, {summary.exact_bits_per_element:.4f} bits each"))
    if summary.weight_files:
        found.append(("weight files", f"restored byte for byte: {summary.weight_files:,}"))
    if summary.max_abs_delta is not None:
        found.append(("largest |delta|", f"{summary.max_abs_delta:.3g}"))
    return found


def _spelt(recipe: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in recipe.items()) or "none"


def _composition(summary: PackSummary) -> str:
    there = [(_PARTS.get(part, part), count) for part, count in summary.split.items() if count]
    rows = [(name, f"{count:,}", f"{100 * count / summary.pack_bytes:.1f} %") for name, count in there]
    chart = parts_chart("bytes by use", there, "bytes")
    return section("What it is made of", "Bytes of the file by what they are for.", chart, table(("part", "bytes", "share"), rows))


def _layers(tensors: Sequence[TensorSummary]) -> str:
    by_layer: dict[int, int] = {}
    for tensor in tensors:
        number = layer_number(tensor.name)
        if number is not None:
            by_layer[number] = by_layer.get(number, 0) + tensor.stored_bytes
    if len(by_layer) < 2:
        return ""
    bars = [(str(number), float(count)) for number, count in sorted(by_layer.items())]
    text = "Stored bytes of the tensors of each layer; what is outside of the layers is in the table below."
    return section("Where they are", text, bar_chart("bytes by layer", Axis("layer"), Axis("bytes"), bars))


def _tensors(summary: PackSummary) -> str:
    ordered = sorted(summary.tensors, key=lambda tensor: (-tensor.stored_bytes, tensor.name))
    rows = [_row(tensor) for tensor in ordered[:_MOST_ROWS]]
    more = len(ordered) - len(rows)
    rest = [f"{more:,} more are in the output of --json --tensors."] if more else []
    header = ("tensor", "kind", "role", "type", "shape", "values", "kept", "bits a weight", "bytes")
    return section("Tensors by size", "The largest first.", table(header, rows), paragraphs(rest, "dim"))


def _row(tensor: TensorSummary) -> tuple[str, ...]:
    low = tensor.low_rank_elements
    return (
        f"{tensor.name} = {tensor.of}" if tensor.of else tensor.name,
        tensor.kind,
        tensor.role or "",
        tensor.dtype or "",
        "x".join(map(str, tensor.shape)) if tensor.dtype else "",
        "+".join(tensor.value_codecs),
        f"{tensor.nnz - low:,}" if tensor.elements and low < tensor.elements * len(tensor.factors) else "",
        f"{8 * tensor.stored_bytes / tensor.elements:.3f}" if tensor.elements else "",
        f"{tensor.stored_bytes:,}",
    )


def _files(summary: PackSummary) -> str:
    rows = [
        (file.name, f"{file.size:,}", "as in the base" if file.stored_bytes is None else f"{file.stored_bytes:,}") for file in summary.files
    ]
    return section("Side files", "What travels beside the tensors: config, tokenizer, templates.", table(("file", "bytes", "stored"), rows))


def _lineage(summary: PackSummary, lineage: Lineage) -> str:
    """Show the pack's chain: those that it follows, itself, and those that follow it."""
    by_path, place = {str(row.path): row for row in lineage.rows}, summary.path.resolve()
    own = next((row for row in lineage.rows if row.path.resolve() == place), None)
    if own is None or not own.root:
        return ""
    before = [own]
    while before[0].follows:
        before.insert(0, by_path[before[0].follows])
    chain = {str(row.path) for row in before}
    for row in lineage.rows:  # each stands after the one that it follows
        if row.follows in chain and row.link > own.link:
            chain.add(str(row.path))
    shown = [row for row in lineage.rows if str(row.path) in chain]
    rows = [
        (f"{row.path.name} (this one)" if row is own else row.path.name, f"{row.link}", row.kind, f"{row.changed:,}", f"{row.bytes:,}")
        for row in shown
    ]
    root = "no base is needed" if not own.needs_base else f"The chain begins at the base {own.root}."
    text = f"{root} Packs of the same folder, each made from what the one before restores."
    return section("Lineage", text, table(("pack", "link", "kind", "tensors changed", "bytes"), rows))
