"""`deltapack completion`."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from deltapack.cli import options

__all__ = ["SHELLS", "command"]

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=options.Command, short_help="Print the script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(SHELLS), metavar="|".join(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, methods and paths at the Tab key.

    \b
    bash  eval "$(deltapack completion bash)"             in ~/.bashrc
    zsh   eval "$(deltapack completion zsh)"              in ~/.zshrc
    fish  deltapack completion fish > ~/.config/fish/completions/deltapack.fish

    A package of a distribution puts it where the shell looks, such as
    share/bash-completion/completions/deltapack or share/zsh/site-functions/_deltapack.
    """  # noqa: D301 - click wants the very sign
    found = get_completion_class(shell)
    assert found is not None
    # Not the class's own `source`: of bash it would start the one of this machine, which need not be the one that the script is for.
    click.echo(ShellComplete.source(found(context.find_root().command, {}, "deltapack", "_DELTAPACK_COMPLETE")))
