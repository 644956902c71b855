"""`deltapack inspect`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from deltapack.cli import options
from deltapack.cli.render import (
    count_of,
    human_bytes,
    kinds_line,
    print_fields,
    print_json,
    print_notes,
    print_parts,
    print_table,
    weight_files_field,
)
from deltapack.packs.inspecting import PackSummary, TensorSummary, inspect_pack

__all__ = ["command"]

PARTS = {
    "terms": "deltas",
    "stored": "stored tensors",
    "exact": "exact tensors",
    "digests": "digests",
    "files": "side files and headers",
    "header": "header and index of the file",
}
COLUMNS = ("tensor", "role", "kind", "dtype", "shape", "index", "values", "kept", "bits/weight", "max |delta|", "bytes")
DROPPED = ("role", "index", "max |delta|", "kept", "shape", "values", "dtype", "kind")
"""What a narrow terminal does without, first to last."""


@click.command(cls=options.Command, short_help="Show what a pack holds.")
@options.pack_argument
@click.option("--tensors", is_flag=True, help="List every tensor.")
@options.html_option
@options.force_option
@options.output_options
def command(pack: Path, tensors: bool, html: Path | None, force: bool, quiet: bool, as_json: bool) -> None:
    """Show what PACK says of itself, from its index alone: `deltapack verify` checks the rest."""
    summary = inspect_pack(pack)
    if html is not None:
        from deltapack.analysis.pack_page import write_pack_page  # not where only text is asked for, which is there at once

        write_pack_page(summary, html, force=force)
    if as_json:
        print_json(summary.to_json(tensors=tensors))
    elif not quiet:
        _print(summary)
        if tensors:
            click.echo()
            print_table(COLUMNS, map(_row, summary.tensors), left=7, drop=DROPPED)
        if html is not None:
            print_notes([f"the page is {html}"])


def _print(summary: PackSummary) -> None:
    whole = human_bytes(summary.checkpoint_bytes)
    size = f"{human_bytes(summary.pack_bytes)} ({summary.pack_bytes:,} bytes)"
    fields = [
        ("pack", str(summary.path)),
        ("id", summary.id),
        ("content id", summary.content_id),
        ("written by", summary.created_by),
        ("size", f"{size}, {summary.ratio:.1f} times smaller than the checkpoint of {whole}"),
        ("base", f"{summary.base_fingerprint} ({count_of(summary.base_tensors, 'tensor')})"),
        ("result", f"{summary.result_fingerprint} ({count_of(summary.result_tensors, 'tensor')})"),
        ("recipe", ", ".join(_settings(summary.recipe))),
        ("tensors", kinds_line(summary.kinds)),
    ]
    fields += weight_files_field(summary.weight_files)
    if summary.delta_elements:
        fields += [
            ("kept", _kept(summary)),
            ("bits per weight", f"{summary.delta_bits_per_weight:.4f}"),
            ("index codecs", kinds_line(summary.index_codecs)),
            ("value codecs", kinds_line(summary.value_codecs)),
        ]
    if summary.exact_elements:
        coded, bits = f"{summary.exact_elements:,} elements", f"{summary.exact_bits_per_element:.4f} bits per element"
        fields.append(("exact", f"{coded} of {count_of(summary.kinds['exact'], 'tensor')}, {bits}"))
    if summary.max_abs_delta is not None:
        fields.append(("max |delta|", f"{summary.max_abs_delta:.3g}"))
    print_fields(fields)
    click.echo()
    print_parts(PARTS, summary.split, summary.pack_bytes)
    if summary.files:
        click.echo()
        files = [
            (file.name, f"{file.size:,}", "as in the base" if file.stored_bytes is None else f"{file.stored_bytes:,}")
            for file in summary.files
        ]
        print_table(("side file", "bytes", "stored"), files)


def _kept(summary: PackSummary) -> str:
    """Say how much of the difference is kept element by element; a term of low rank has all of them, and none by itself."""
    low = summary.low_rank_elements
    kept, whole = summary.nnz - low, summary.term_elements - low
    weights = f"{count_of(summary.delta_elements, 'weight')} of changed tensors"
    if not whole:
        return f"the directions that factors have of {weights}"
    several = f"the {whole:,} elements of several terms for " if whole != summary.delta_elements else ""
    return f"{kept:,} of {several}{weights} ({100 * kept / whole:.4g} %)" + (", beside factors of low rank" if low else "")


def _settings(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Spell the recipe; it is informative, so nothing of it is taken for granted."""
    for key, value in recipe.items():
        if not isinstance(value, list):
            yield f"{key} {value}"
            continue
        for item in value:
            yield f"{key}: " + (" ".join(f"{k}={_spelt(v)}" for k, v in item.items()) if isinstance(item, dict) else str(item))


def _spelt(value: object) -> str:
    return ",".join(f"{key}:{item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _elements(tensor: TensorSummary) -> int:
    """Return what a tensor's bits are counted per: elements that were dropped from, or all that are coded exactly."""
    return math.prod(tensor.shape) if tensor.kind == "exact" else tensor.elements


def _row(tensor: TensorSummary) -> tuple[str, ...]:
    shape = f"[{', '.join(map(str, tensor.shape))}]"
    parts = tensor.base_parts
    made_of = f" (from {f'{len(parts)} tensors' if len(parts) > 1 else parts[0]})" if parts else ""
    name = f"{tensor.name} = {tensor.of}" if tensor.of else tensor.name + made_of
    counted, low = _elements(tensor), tensor.low_rank_elements
    return (
        name,
        tensor.role or "",
        tensor.kind,
        tensor.dtype or "",
        shape if tensor.dtype else "",
        "+".join(tensor.index_codecs),
        "+".join(tensor.value_codecs),
        f"{tensor.nnz - low:,}" if tensor.elements and low < tensor.elements * len(tensor.factors) else "",
        f"{8 * tensor.stored_bytes / counted:.3f}" if counted else "",
        f"{tensor.max_abs_delta:.3g}" if tensor.max_abs_delta is not None else "",
        f"{tensor.stored_bytes:,}",
    )
