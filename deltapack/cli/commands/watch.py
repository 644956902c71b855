"""`deltapack watch`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import count_of, human_bytes, print_paragraph
from deltapack.cli.streams import Teller
from deltapack.kinds import FOLDER
from deltapack.runs.steps import EVERY_ANCHOR, POLL, SETTLE, ChangedStep, PackedStep, SkippedStep

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Pack the checkpoints of a training run as they appear.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--base", type=options.checkpoint_path, metavar="BASE", help="What the run started from; else an anchor holds everything.")
@options.out_option(FOLDER, "The folder of the packs; packs in DIR unless given.", required=False)
@click.option(
    "--every-anchor",
    type=click.IntRange(min=1),
    default=EVERY_ANCHOR,
    show_default=True,
    metavar="N",
    help="Packs of a chain: every so many the pack is made from BASE, and not from the step before.",
)
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Remove packs of all but the newest steps and those that they need.")
@click.option("--once", is_flag=True, help="End when all that is there is packed.")
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=SETTLE,
    show_default=True,
    metavar="SECONDS",
    help="Pack a checkpoint when nothing of it has changed for so long.",
)
@click.option(
    "--poll",
    type=click.FloatRange(min=0, min_open=True),
    default=POLL,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@options.workers_option
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document for each step, a line each, on stdout.")
def command(
    folder: Path,
    base: Path | None,
    out: Path | None,
    every_anchor: int,
    keep: int | None,
    once: bool,
    settle: float,
    poll: float,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pack the checkpoints in DIR, bit for bit, the oldest first, as they appear and are complete; until Ctrl-C.

    Checkpoints are folders or files such as checkpoint-500, step_7, global_step20 and step-100. Each is packed
    against the one before, every so many against BASE; `deltapack apply BASE DIR/packs --step N` restores one.
    Steps that have a pack are left alone, so the command may be started again at any time. With --once the exit
    code is 1 where a step could not be packed.
    """
    how: dict[str, Any] = {"base": base, "out": out, "every_anchor": every_anchor, "keep": keep, "settle": settle, "poll": poll}
    say = Teller()
    _print_overview(say, folder, out, once=once, quiet=quiet or as_json)
    skipped: set[int] = set()
    for event in deltapack.watch(folder, once=once, workers=workers, **how):
        if isinstance(event, SkippedStep):
            skipped.add(event.step)
        else:
            skipped.discard(event.step)  # it was tried again
        if as_json:
            say(json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in asdict(event).items()}))
        elif isinstance(event, SkippedStep):
            print_paragraph("Warning", f"step {event.step} was not packed: {event.reason}")
        elif isinstance(event, ChangedStep):
            hint = "remove its pack and those after it to pack it anew"
            print_paragraph("Warning", f"step {event.step} was packed, and its checkpoint has changed since: {hint}")
        else:
            _print(say, event, quiet)
    say.end()
    if skipped:  # without --once nothing but an error or Ctrl-C ends it
        click.get_current_context().exit(1)


def _print_overview(say: Teller, folder: Path, out: Path | None, *, once: bool, quiet: bool) -> None:
    """Say what is there, so that a wrong folder is not taken for one in which all is done."""
    from deltapack.runs.watching import look_over  # only now: the help needs no numpy

    found = look_over(folder, out)
    if not found.checkpoints:
        others = f"; found {', '.join(found.unknown[:3])}{' and others' * (len(found.unknown) > 3)}" if found.unknown else ""
        print_paragraph("Warning", f"{folder} has no checkpoints yet: a name tells the step, as checkpoint-500 or step_7{others}")
    elif not quiet:
        packed = "all" if found.packed == found.checkpoints else f"{found.packed:,}"
        then = "" if once else "; Ctrl-C ends"
        say(f"{folder} has {count_of(found.checkpoints, 'checkpoint')}, {packed} of them packed in {found.packs}{then}")


def _print(say: Teller, packed: PackedStep, quiet: bool) -> None:
    for text in packed.warnings:
        print_paragraph("Warning", text)
    if quiet:
        return
    made = "from the base" if packed.follows is None else f"follows step {packed.follows}"
    ratio = packed.checkpoint_bytes / packed.pack_bytes
    say(f"step {packed.step}: {packed.pack}, {human_bytes(packed.pack_bytes)}, {ratio:.1f} times smaller ({made})")
    if packed.removed:
        say(f"removed packs of steps {', '.join(map(str, packed.removed))}")
