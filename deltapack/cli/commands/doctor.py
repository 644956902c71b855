"""`deltapack doctor`."""

from __future__ import annotations

import click

from deltapack.cli import options
from deltapack.cli.render import print_fields, print_json, print_table

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Check this installation: versions, backends, known bits.")
@options.output_options
def command(quiet: bool, as_json: bool) -> None:
    """Show what is installed and which code computes here, and restore small packs whose bits are known.

    The exit code is 1 if any differ.
    """
    from deltapack.doctor.checkup import examine

    found = examine()
    if as_json:
        print_json(found.to_json())
    elif not quiet:
        libraries = ", ".join(f"{name} {version}" for name, version in found.versions.items() if version is not None)
        missing = ", ".join(name for name, version in found.versions.items() if version is None)
        fields = [("deltapack", found.deltapack), ("Python", found.python), ("system", f"{found.system}, {found.workers} threads")]
        print_fields([*fields, ("with", libraries), *([("without", missing)] if missing else [])])
        rows = [(check.name, "yes" if check.ok else "NO", check.found) for check in found.checks]
        print_table(("checked", "well", "found"), rows, left=3)
    if not found.ok:
        click.get_current_context().exit(1)
