"""`deltapack push`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import escaped, human_bytes, print_fields, print_json, print_notes, print_table, show_progress

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Upload a pack to the Hugging Face Hub.")
@options.pack_argument
@click.argument("repo", metavar="ORG/NAME")
@click.option("--base", metavar="BASE", help="The base, as ORG/NAME or ORG/NAME@REVISION; what the pack's own card names unless given.")
@options.card_option
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", metavar="BRANCH", help="The branch to commit to; it is made if it is not there.")
@click.option("--message", metavar="TEXT", help="The message of the commit.")
@click.option("--create-pr", is_flag=True, help="Open a pull request in place of the commit.")
@click.option("--dry-run", is_flag=True, help="Check everything, show files and card, and upload nothing.")
@options.workers_option
@options.output_options
def command(
    pack: Path,
    repo: str,
    base: str | None,
    card: Path | None,
    private: bool,
    revision: str | None,
    message: str | None,
    create_pr: bool,
    dry_run: bool,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Upload PACK to the repository ORG/NAME in one commit: config, tokenizer, the pack in place of weights, and a model card.

    The pack is checked with its base before anything is uploaded. The repository is made if it is not there; what it has beside, and the
    text of its card, stay. The token is that of `hf auth login`, or HF_TOKEN.
    """
    silent = quiet or as_json
    with show_progress("checking", quiet=silent) as progress:
        report = deltapack.push(
            pack,
            repo,
            base=base,
            card=card,
            private=private,
            revision=revision,
            message=message,
            create_pr=create_pr,
            dry_run=dry_run,
            quiet=silent or not sys.stderr.isatty(),
            workers=workers,
            progress=progress,
        )
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        _print(report)


def _print(report: deltapack.PushReport) -> None:
    at = f" at {report.base_revision}" if report.base_revision else ""
    fields = [("base", f"{report.base}{at}")]
    if report.dry_run:
        fields = [("would go to", report.url), *fields]
    else:
        fields = [("repository", report.url), ("commit", report.commit_url or ""), *fields]
    if report.pull_request:
        fields.append(("pull request", report.pull_request))
    print_fields(fields)
    click.echo()
    print_table(("file", "bytes"), [(name, f"{size:,}") for name, size in report.files.items()])
    click.echo(f"  {human_bytes(sum(report.files.values()))} in all")
    if report.dry_run:
        click.echo()
        for line in report.card.splitlines():
            click.echo(escaped(line))
        click.echo()
    print_notes(report.notes)
