"""What `deltapack compress` prints: what was packed, or would be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deltapack.cli.render import count_of, human_bytes, kinds_line, print_fields, print_parts, print_table, weight_files_field

if TYPE_CHECKING:
    from deltapack.reports import CompressPreview, CompressReport

__all__ = ["print_compression", "print_preview"]

PARTS = {
    "index": "index (positions)",
    "codes": "values",
    "scales": "scales",
    "factors": "factors",
    "tables": "tables and digests",
    "stored": "stored tensors",
    "exact": "exact tensors",
    "files": "side files and headers",
    "header": "header and index of the file",
}


def print_compression(report: CompressReport) -> None:
    """Print how large a pack is, and what of."""
    size, whole = human_bytes(report.pack_bytes), human_bytes(report.checkpoint_bytes)
    bytes_, weights = f"{report.pack_bytes:,} bytes", count_of(report.delta_elements, "weight")
    fields = [
        ("pack", str(report.pack)),
        ("size", f"{size} ({bytes_}), {report.ratio:.1f} times smaller than the checkpoint of {whole}"),
    ]
    if report.delta_elements:
        fields.append(("bits per weight", f"{report.delta_bits_per_weight:.4f} over {weights} of changed tensors"))
    fields += [("tensors", kinds_line(report.kinds)), ("roles", kinds_line(report.roles))]
    fields += weight_files_field(report.weight_files)
    fields += _loss_field(report.expected_loss)
    if report.worst:
        fields.append(("max |delta|", f"{report.max_abs_delta:.3g}"))
    print_fields(fields)
    click.echo()
    print_parts(PARTS, report.split, report.pack_bytes)
    if report.worst:
        click.echo()
        print_table(("largest deltas", "max |delta|"), [(name, f"{value:.3g}") for name, value in report.worst])


def print_preview(preview: CompressPreview) -> None:
    """Print what would become of each tensor."""
    size, whole = human_bytes(preview.pack_bytes), human_bytes(preview.checkpoint_bytes)
    print_fields(
        [
            ("would write", f"about {size}, {preview.ratio:.1f} times smaller than the checkpoint of {whole}"),
            ("side files", f"about {human_bytes(preview.side_file_bytes)} of that"),
            ("tensors", kinds_line(preview.kinds)),
            *weight_files_field(preview.weight_files),
            *_loss_field(preview.expected_loss),
        ]
    )
    click.echo()
    rows = [
        (
            f"{row.name} = {row.base_name}" if row.kind == "alias" else row.name,
            row.role,
            row.kind,
            row.dtype,
            f"[{', '.join(map(str, row.shape))}]" if row.dtype else "",
            "" if row.base_name == row.name or row.kind == "alias" else row.base_name,
            row.index,
            row.values,
            f"{row.bytes:,}",
        )
        for row in preview.tensors
    ]
    header = ("tensor", "role", "kind", "dtype", "shape", "from", "index", "values", "about bytes")
    print_table(header, rows, left=8, drop=("role", "index", "dtype", "shape", "from", "values"))


def _loss_field(loss: float | None) -> list[tuple[str, str]]:
    """Say what a budget is expected to cost."""
    if loss is None:
        return []
    share = "below 0.1 %" if loss < 0.001 else f"about {100 * loss:.1f} %" if loss < 1 else "all"
    return [("expected loss", f"{share} of what the fine-tune gained, an estimate")]
