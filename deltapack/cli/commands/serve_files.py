"""`deltapack serve-files`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from deltapack.cli import options
from deltapack.cli.render import count_of, print_fields, print_paragraph

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Serve every pack of a folder as a checkpoint over HTTP.")
@options.base_argument
@options.shelf_argument
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on: only this machine by default."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N", help="Port to listen on; 0 takes a free one."
)
@options.cache_option
@options.workers_option
@click.option("--no-verify", is_flag=True, help="Do not compare digests.")
@options.output_options
def command(
    base: Path, packs: Path, host: str, port: int, cache: str, workers: int | None, no_verify: bool, quiet: bool, as_json: bool
) -> None:
    """Serve each pack in PACKS_DIR as the Hugging Face folder that it restores over BASE, of which nothing is written.

    /NAME/model.safetensors is the file that `deltapack apply BASE NAME.dpk` would write, byte for byte, made as it is
    read. Packs that follow one another are chains, .yaml files merge recipes. Ranges, ETags and listings (HTML, or JSON
    with ?format=json) are there; HF_ENDPOINT=http://127.0.0.1:8000 makes transformers load any/NAME from here. New packs
    appear by themselves. Whoever can reach the address can read all of it.
    """
    from deltapack.virtual.serving import open_server
    from deltapack.virtual.shelf import Shelf

    shelf = Shelf(base, packs, cache=cache, verify=not no_verify, workers=workers)
    try:
        with open_server(shelf, host, port, lambda text: print_paragraph("Warning", text)) as server:
            titles, damaged = shelf.titles(), shelf.damaged()
            if as_json:
                click.echo(json.dumps({"url": server.url, "models": list(titles), "damaged": dict(damaged)}))
            elif not quiet:
                print_fields([("serving", server.url), ("with", f"{count_of(len(titles), 'model')}: {', '.join(titles) or 'none yet'}")])
            for name, error in damaged.items():
                print_paragraph("Warning", f"{name} is left out: {error}")
            shelf.warm_soon()
            server.serve_forever()
    except KeyboardInterrupt:
        pass  # how it ends
    finally:
        shelf.close()
