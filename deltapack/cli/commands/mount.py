"""`deltapack mount`."""

from __future__ import annotations

from pathlib import Path

import click

from deltapack.cli import options
from deltapack.cli.render import count_of, print_fields, print_paragraph

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Mount every pack of a folder as a checkpoint.")
@options.base_argument
@options.shelf_argument
@click.argument("mountpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.cache_option
@options.workers_option
@click.option("--no-verify", is_flag=True, help="Do not compare digests.")
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only.")
def command(base: Path, packs: Path, mountpoint: Path, cache: str, workers: int | None, no_verify: bool, quiet: bool) -> None:
    """Mount each pack in PACKS_DIR as the Hugging Face folder that it restores over BASE, of which nothing is written.

    MOUNTPOINT/NAME/model.safetensors is the file that `deltapack apply BASE NAME.dpk` would write, byte for byte, made
    as it is read. Packs that follow one another are chains, .yaml files merge recipes. New packs appear by themselves.
    Ctrl-C, or `fusermount -u MOUNTPOINT`, ends it. It needs FUSE: pip install 'deltapack[mount]', and libfuse.
    """
    from deltapack.integrations.fuse import mount
    from deltapack.virtual.shelf import Shelf

    shelf = Shelf(base, packs, cache=cache, verify=not no_verify, workers=workers)

    def ready() -> None:
        titles, damaged = shelf.titles(), shelf.damaged()
        if not quiet:
            models = f"{count_of(len(titles), 'model')}: {', '.join(titles) or 'none yet'}"
            print_fields([("mounting", str(mountpoint)), ("with", models)])
        for name, error in damaged.items():
            print_paragraph("Warning", f"{name} is left out: {error}")
        shelf.warm_soon()

    try:
        mount(shelf, mountpoint, lambda text: print_paragraph("Warning", text), ready)
    except KeyboardInterrupt:
        pass  # how it ends
    finally:
        shelf.close()
