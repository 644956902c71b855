"""Arguments and options that several commands share, each written once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from deltapack.cli.types import CheckpointPath, Choice, OutPath, PackPath, Suggested, WeightFiles
from deltapack.merging.choices import METHOD_NAMES, SEMANTICS_NAMES

__all__ = [
    "Command",
    "base_argument",
    "base_packs_option",
    "cache_option",
    "card_option",
    "check_measure_options",
    "checkpoint_options",
    "checkpoint_path",
    "finetuned_argument",
    "force_option",
    "html_option",
    "map_option",
    "measure_options",
    "merge_options",
    "out_option",
    "output_options",
    "pack_argument",
    "pack_path",
    "packs_argument",
    "shelf_argument",
    "typed_options",
    "weights_option",
    "workers_option",
]

F = TypeVar("F", bound=Callable[..., Any])
_DTYPES = ("bf16", "f16", "f32", "f64", "bfloat16", "float16", "float32", "float64", "f8_e4m3fn", "f8_e5m2")


class Command(click.Command):
    """A command that refuses an option of one value given twice: which of the two was meant?"""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse, and count what was typed."""
        args = args if context.resilient_parsing else self._without_taken(context, args)
        _, _, typed = self.make_parser(context).parse_args(list(args)) if not context.resilient_parsing else ({}, [], [])
        for parameter in {id(one): one for one in typed}.values():
            single = isinstance(parameter, click.Option) and not (parameter.multiple or parameter.is_flag or parameter.count)
            if single and sum(one is parameter for one in typed) > 1:
                raise click.UsageError(f"Option {max(parameter.opts, key=len)!r} takes one value and is given twice.", context)
        return super().parse_args(context, args)

    def _without_taken(self, context: click.Context, args: list[str]) -> list[str]:
        """Give back to the arguments what an option whose value may be left out took from them.

        click takes the next word as its value, also where that is an argument: `--exact BASE FINETUNED`.
        """
        may_be_empty = [one for one in self.params if isinstance(one, click.Option) and isinstance(one.flag_value, str)]
        optional = {flag: one.flag_value for one in may_be_empty if not one.is_flag for flag in one.opts}
        places = [number for number, word in enumerate(args[:-1]) if word in optional and not args[number + 1].startswith("-")]
        if len(places) != 1:
            return args
        at = places[0]
        given_back = [*args[:at], f"{args[at]}={optional[args[at]]}", *args[at + 1 :]]
        _, too_many, _ = self.make_parser(context).parse_args(list(given_back))
        return args if too_many else given_back


def typed_options(names: Collection[str]) -> list[str]:
    """Return those of these parameters of the command in hand that were typed, as they are spelt on the command line."""
    context = click.get_current_context()
    found = [parameter for parameter in context.command.params if parameter.name in names]
    typed = [one for one in found if context.get_parameter_source(one.name or "") is ParameterSource.COMMANDLINE]
    return [max(one.opts, key=len) for one in typed]


checkpoint_path = CheckpointPath()
pack_path = PackPath()

# Eager: a pack that turns out to be a folder is told where the base went.
base_argument = click.argument("base", type=checkpoint_path, is_eager=True)
finetuned_argument = click.argument("finetuned", type=checkpoint_path)
pack_argument = click.argument("pack", type=pack_path)
packs_argument = click.argument("packs", type=pack_path, nargs=-1, required=True, metavar="PACK...")
shelf_argument = click.argument("packs", metavar="PACKS_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
cache_option = click.option(
    "--cache", default="1GB", show_default=True, metavar="S", help="Restored tensors that are kept in memory, of all models together."
)
base_packs_option = click.option(
    "--base-pack",
    "base_packs",
    type=pack_path,
    multiple=True,
    metavar="PACK",
    help="The base is what PACK restores from BASE. Repeatable, for a chain of packs.",
)

weights_option = click.option(
    "--weights",
    "weight_files",
    type=WeightFiles(["index", "single"]),
    help="What to read of a folder that has one file of weights beside an index of shards that say otherwise.",
)
force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")


def _read_map(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of regular expression and replacement."""
    pairs = []
    for text in values:
        pattern, equals, replacement = text.rpartition("=")  # an expression may hold a `=`, a tensor's name does not
        if not equals or not pattern:
            raise click.BadParameter(f"'{text}' is not of the form REGEX=REPLACEMENT.", context, parameter)
        pairs.append((pattern, replacement))
    return pairs


map_option = click.option(
    "--map",
    "name_map",
    multiple=True,
    callback=_read_map,
    metavar="REGEX=REPLACEMENT",
    help="Turn whole names of the fine-tune into names of the base, such as 'model\\.(.*)=\\1'. Repeatable.",
)
html_option = click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with tables and plots: one file, which needs no network.",
)
card_option = click.option(
    "--card",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A model card to take: its text stays, its front matter is completed. `new` writes one, also where the pack carries one.",
)
workers_option = click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Threads; every core unless given.")


def out_option(what: str, help_text: str, *, required: bool = True) -> Callable[[F], F]:
    """Return the option `-o/--out`; `what` is one of the kinds of output that `deltapack.kinds` has."""
    return click.option("-o", "--out", type=OutPath(what), required=required, metavar="OUT", help=help_text)


def output_options(function: F) -> F:
    """Add `--json` and `--quiet`."""
    quiet = click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    return as_json(quiet(function))


def checkpoint_options(function: F) -> F:
    """Add what every command that restores tensors takes."""
    options = (
        click.option(
            "--dtype",
            type=Suggested(_DTYPES),
            metavar="D",
            help="Type of all float tensors of the result, such as bf16 (or bfloat16); their own by default.",
        ),
        click.option("--max-shard-size", metavar="S", help="Largest shard, such as 5GB; those of the base by default."),
        click.option("--no-verify", is_flag=True, help="Do not compare digests of base and result."),
        force_option,
        click.option(
            "--resume",
            is_flag=True,
            help="Go on where a run was stopped: files of a folder that it finished are checked and stay (same base, packs, options).",
        ),
        workers_option,
        click.option("--device", metavar="D", help="Where to decode, such as cuda; the CPU by default. The output is the same."),
        click.option(
            "--backend", type=Choice(["auto", "cpu", "torch", "triton"]), default="auto", help="What decodes; auto takes the fastest."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def check_measure_options(score: str | None) -> None:
    """Refuse what says how a text is read where a program measures.

    Raises:
        click.UsageError: It was typed beside `--eval`.
    """
    idle = typed_options(("tokens", "window", "device", "dtype")) if score is not None else []
    if idle:
        raise click.UsageError(f"{idle[0]} does nothing beside --eval: the program loads the model, and says how. Leave it out.")


def measure_options(function: F) -> F:
    """Add what says how models are measured."""
    options = (
        click.option(
            "--text",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="A plain text that no model was trained on, for language models of transformers.",
        ),
        click.option(
            "--eval",
            "score",
            metavar="COMMAND",
            help="Instead: what to run for each model, with {model} where its path goes; it prints a number as its last word.",
        ),
        click.option(
            "--tokens",
            type=click.IntRange(min=32),
            default=16_384,
            show_default=True,
            metavar="N",
            help="Most tokens to read, spread over the text.",
        ),
        click.option(
            "--window", type=click.IntRange(min=2), default=512, show_default=True, metavar="N", help="Tokens that a model sees at a time."
        ),
        click.option("--device", metavar="D", help="Where models compute, such as cuda; the CPU by default."),
        click.option(
            "--dtype",
            type=Suggested(("f32", "bf16", "f16", "own")),
            default="f32",
            show_default=True,
            metavar="D",
            help="Type in which they compute; own is that of the checkpoint. bf16 puts a floor of about 0.001 under KL.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def merge_options(function: F) -> F:
    """Add what says how packs are merged."""
    options = (
        click.option(
            "--method",
            type=Suggested(METHOD_NAMES),
            metavar="METHOD",
            help=f"How to merge: {', '.join(METHOD_NAMES)}; linear (task arithmetic) unless given. docs/merging.md has the formulas.",
        ),
        click.option(
            "--weight",
            "weights",
            multiple=True,
            metavar="W",
            help="Weight: a number once for all packs or once for each, PACK=W, or REGEX:PACK=W for tensors whose whole name matches; "
            "PACK may be *. W1,W2 goes from the first layer to the last. 1 unless given; of several that fit the last wins.",
        ),
        click.option(
            "--density",
            "densities",
            multiple=True,
            metavar="D",
            help="Share of a tensor's elements that a pack may keep, likewise. Only kept elements are dropped.",
        ),
        click.option("--lambda", "scale", type=float, metavar="L", help="Factor for the merged difference."),
        click.option("--normalize/--no-normalize", default=None, help="Divide by the sum of the weights; the method decides unless given."),
        click.option(
            "--semantics",
            type=Suggested(SEMANTICS_NAMES),
            metavar="TOOL",
            help="Whose formula, where tools differ: mergekit, paper or peft.",
        ),
        click.option(
            "--param", "parameters", multiple=True, metavar="NAME=X", help="Another parameter of the method, such as select_topk=0.5."
        ),
        click.option(
            "--recipe",
            "recipe_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Read packs, method and parameters from a YAML file of mergekit's form.",
        ),
        click.option(
            "--packs",
            "pack_folder",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            metavar="DIR",
            help="Where the packs of the recipe's models are: org/name is DIR/name.dpk, and paths of packs are looked for there first.",
        ),
        click.option(
            "--prefer",
            metavar="PACK",
            help="The pack, by its path or short name, that decides on tensors that cannot be added, such as new heads, and on side files.",
        ),
        click.option(
            "--assets",
            metavar="from=PACK",
            help="The pack that config, tokenizer and chat template are from, or `base`; else --vocab or --prefer decides.",
        ),
        click.option(
            "--vocab",
            metavar="PACK",
            help="The pack whose new rows and tokens the result has, `union` for those of all, or `base` for none; else of the only pack "
            "that has some.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function
