"""The command `deltapack`: finds the command that is asked for, and turns what it raises into messages and exit codes.

Commands are imported when they are called, so `--help` and `inspect` start without numpy, numba or torch.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from deltapack._version import __version__
from deltapack.cli.render import print_paragraph
from deltapack.cli.streams import forget_stdout, forget_unwritten, prepare_streams
from deltapack.errors import BackendError, DeltapackError, did_you_mean

__all__ = ["cli", "main"]

INTERRUPTED = 130
_show_others = warnings.showwarning

EPILOG = """\b
Exit codes:
    0  done
    1  anything else: the output exists, the disk is full, NaN in the
       fine-tune, packs in conflict, the Hub or a server refuses
    2  usage: an option or argument is wrong
    3  corrupt: a pack or a checkpoint is damaged
    4  another checkpoint: not the base that the pack was made from, or
       not what it restores (verify --model)
    5  unsupported: valid, but this version or machine cannot do it,
       or a file that is something else than a checkpoint or a pack
    6  limit: the input asks for more than the limits allow
  130  interrupted

Every command takes --help.

\b
Completion of commands, options, methods and paths; for bash, in ~/.bashrc:
    eval "$(deltapack completion bash)"
zsh and fish: deltapack completion --help."""


@dataclass(frozen=True)
class _Command:
    """What the group knows of a command without importing it."""

    summary: str
    interrupted: str = "; nothing was changed under the final name"


COMMANDS: Mapping[str, _Command] = {
    "compress": _Command("Pack the difference between a fine-tune and its base."),
    "apply": _Command("Restore a fine-tune from its base and a pack, or a chain of packs."),
    "merge": _Command("Merge packs onto their common base."),
    "watch": _Command("Pack the checkpoints of a training run as they appear.", interrupted="; each pack that is there is whole"),
    "inspect": _Command("Show what a pack holds.", interrupted=""),
    "verify": _Command("Check a pack for damage, and whether a base fits it.", interrupted=""),
    "analyze": _Command("Look at a difference before it is packed: what it costs at which size.", interrupted=""),
    "evaluate": _Command("Measure what packs keep of a fine-tune.", interrupted=""),
    "tune": _Command("Find better factors for what a pack dropped, by forward passes."),
    "log": _Command("Show which pack follows which.", interrupted=""),
    "squash": _Command("Make one pack of a chain of packs."),
    "split": _Command("Write a pack in numbered parts."),
    "export": _Command("Write a pack in a form that another tool loads."),
    "push": _Command("Upload a pack to the Hugging Face Hub.", interrupted="; a commit is there as a whole or not at all"),
    "pull": _Command("Fetch a pack from the Hugging Face Hub."),
    "card": _Command("Write the model card of a pack."),
    "serve-files": _Command("Serve every pack of a folder as a checkpoint over HTTP.", interrupted=""),
    "mount": _Command("Mount every pack of a folder as a checkpoint.", interrupted=""),
    "doctor": _Command("Check this installation: versions, backends, known bits.", interrupted=""),
    "completion": _Command("Print the script that completes commands in a shell.", interrupted=""),
    "demo": _Command("Train a small model and two fine-tunes, then pack, restore and merge them."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any) -> click.Context:
        """As click does; the help may be printed here, to a reader that has gone."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            forget_stdout()
            raise click.exceptions.Exit(0) from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; a wrong word gets the nearest command."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = did_you_mean(args[0], COMMANDS)
            ctx.fail(f"No such command '{args[0]}'.{f' {near}' if near else ''}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"deltapack.cli.commands.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, so that a reader that has gone is noticed here
        except DeltapackError as error:
            print_paragraph("Error", str(error))
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            needed = (error.name or "deltapack").partition(".")[0]
            if needed == "deltapack":  # a part of this package, which nobody can install
                raise
            print_paragraph("Error", f"this needs {needed}, which cannot be imported. Install it with pip.")
            ctx.exit(BackendError.exit_code)
        except KeyboardInterrupt:
            command = COMMANDS.get(ctx.invoked_subcommand or "")
            with suppress(OSError):  # the terminal is closed
                print_paragraph("", f"Interrupted{'' if command is None else command.interrupted}.")
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # whoever read has had enough, as `head` has: all that was asked for was done
            forget_stdout()
            ctx.exit(0)
        except MemoryError:
            print_paragraph("Error", "out of memory. Fewer --workers need less.")
            ctx.exit(1)
        except OSError as error:
            _print_os_error(error)
            forget_unwritten()
            ctx.exit(1)
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            print_paragraph(
                "Error", "the system starts no more threads for this user: `ulimit -u` says how many. Fewer --workers need fewer."
            )
            ctx.exit(1)
        return result


def _print_os_error(error: OSError) -> None:
    where = f"{error.filename}: " if error.filename else ""
    print_paragraph("Error", f"{where}{error.strerror or error}")


@click.command(cls=_Commands, name="deltapack", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deltapack", message="%(prog)s %(version)s")
def cli() -> None:
    """Ship a fine-tune as a small pack over its base model, restore it, and merge several.

    A pack (.dpk) holds the difference between two checkpoints, as much of it as fits a size that you choose, or
    what dropping at random leaves (DARE), or all of it bit for bit; digests say that it came back right.

    BASE, FINETUNED and PACK may be elsewhere: org/name, hf://, https://, s3:// or gs:// (docs/remote.md).
    """


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    """Print a warning of ours for people, without the line of code; one of others' as Python does."""
    if category.__module__.partition(".")[0] == "deltapack":
        print_paragraph("Warning", str(message))
    else:
        _show_others(message, category, filename, lineno, file, line)


def main() -> None:
    """Run the command line and exit."""
    prepare_streams()
    warnings.showwarning = _show_warning
    # They then clean up as Ctrl-C does; by default they would leave temporary files behind. A closed terminal sends SIGHUP.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    # Where colorama is installed, numba would have it write an escape to the terminal when the program ends, also with --quiet.
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    # What arguments name is fetched before options are known.
    quiet = not {"-q", "--quiet"}.isdisjoint(sys.argv)
    if quiet:
        import logging  # only who is to be quiet pays for it

        logging.getLogger("deltapack").setLevel(logging.ERROR)
    if not sys.stderr.isatty() or quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = cli.main(prog_name="hf deltapack" if Path(sys.argv[0]).stem == "hf-deltapack" else "deltapack", standalone_mode=False)
        _leave(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        _leave(error.exit_code)
    except (click.Abort, KeyboardInterrupt):  # before a command has begun, or when it has ended
        print_paragraph("", "Interrupted.")
        _leave(INTERRUPTED)
    except OSError as error:  # the help could not be printed
        _print_os_error(error)
        forget_unwritten()
        _leave(1)


def _leave(code: int) -> NoReturn:
    """Exit; what a signal would have cleaned up is done, so it now ends the process at once, without Python's traceback."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)
    sys.exit(code)
