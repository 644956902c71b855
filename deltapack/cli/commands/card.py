"""`deltapack card`."""

from __future__ import annotations

from pathlib import Path

import click

from deltapack.cli import options
from deltapack.cli.render import escaped, print_fields, print_json, print_paragraph

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Write the model card of a pack.")
@options.pack_argument
@click.option("--base", metavar="BASE", help="The base, as ORG/NAME or ORG/NAME@REVISION; what the pack's own card names unless given.")
@click.option("--repo", metavar="ORG/NAME", help="The repository that the card is for.")
@options.card_option
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="The file to write; else it is printed.")
@options.force_option
@options.output_options
def command(
    pack: Path, base: str | None, repo: str | None, card: Path | None, out: Path | None, force: bool, quiet: bool, as_json: bool
) -> None:
    """Write the model card that `push` would upload with PACK, without uploading it.

    Licence, languages and tags are those of the base's card, where that can be read. Without -o the card is printed, also with
    --quiet, which leaves out what was noticed.
    """
    from deltapack.publishing.contents import card_and_notes

    text, notes = card_and_notes(pack, base=base, repo=repo, card=card, out=out, force=force)
    if as_json:
        print_json({"card": text, "out": None if out is None else str(out), "notes": list(notes)})
        return
    for note in () if quiet else notes:
        print_paragraph("Note", note)  # on stderr, as the card may go to a file
    if out is None:
        for line in text.splitlines():
            click.echo(escaped(line))
    elif not quiet:
        print_fields([("card", str(out))])
