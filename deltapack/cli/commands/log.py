"""`deltapack log`."""

from __future__ import annotations

from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import count_of, print_json, print_notes, print_paragraph, print_table
from deltapack.cli.types import PackOrFolder
from deltapack.errors import FormatError
from deltapack.packs.lineage import LineageRow

__all__ = ["command"]

COLUMNS = ("pack", "kind", "link", "changed", "bytes", "from the base", "content", "date")


@click.command(cls=options.Command, short_help="Show which pack follows which.")
@click.argument("paths", type=PackOrFolder(), nargs=-1, required=True, metavar="DIR|PACK...")
@options.output_options
def command(paths: tuple[Path, ...], quiet: bool, as_json: bool) -> None:
    """Show which pack follows which: each was made from the checkpoint that the one before restores.

    Of a folder all .dpk files count; `link` is the place of a pack in its chain, which `apply` takes from 1 on.
    Only indices are read: `deltapack verify` checks the rest.
    """
    found = deltapack.log_packs(paths)
    if as_json:
        print_json(found.to_json())
    elif not quiet:
        for number, root in enumerate(dict.fromkeys(row.root for row in found.rows)):
            own = [row for row in found.rows if row.root == root]
            click.echo(("\n" if number else "") + f"{_head(own[0])} ({count_of(len(own), 'pack')})")
            print_table(COLUMNS, map(_row, own), left=2, drop=("date", "content", "kind", "from the base"))
        print_notes(found.notes)
    for _, error in found.damaged:
        print_paragraph("Damaged", error)
    if found.damaged:
        click.get_current_context().exit(FormatError.exit_code)


def _head(row: LineageRow) -> str:
    if not row.root:
        return "in a circle"
    return f"base {row.root}" if row.needs_base else "no base is needed: any will do"


def _row(row: LineageRow) -> tuple[str, ...]:
    name = "  " * row.forks + row.path.name
    from_base = f"{row.total_bytes:,}" if row.link else ""
    return (
        name,
        row.kind,
        f"{row.link or ''}",
        f"{row.changed:,} of {row.tensors:,}",
        f"{row.bytes:,}",
        from_base,
        row.content_id[:16],
        row.date,
    )
