"""What the study's language models learn: text that a machine carries or that its distribution packages, and a skill made up on the spot.

Perl's documented modules and the King James Bible (Debian's `bible-kjv`) are two domains for fine-tunes; Python's own library is the
bases' text. Whole documents are held out to measure with.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.assets import AssetsUnavailableError
from deltapack.demo.corpus import read_corpus

__all__ = ["DIGITS", "IGNORED", "PROMPT", "Text", "domain", "sorting", "windows"]

DIGITS = 4
"""How many digits the skill sorts."""
PROMPT = DIGITS + 1
"""Bytes before the answer."""
IGNORED = -100
"""Target of a place that is not learnt."""
_PERL = (Path("/usr/share/perl"), Path("/usr/share/perl5"))
_TABLES = ("unicore", "Unicode", "Encode", "Collate")  # tables of characters, not text
_LARGEST = 200_000
_HELD_OUT_ONE_IN = 12


@dataclass(frozen=True)
class Text:
    """One domain, split by document.

    Attributes:
        train: Documents to learn from.
        held_out: Others, to measure with.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def domain(name: str) -> Text:
    """Return a domain: `python`, `perl` or `bible`.

    Raises:
        AssetsUnavailableError: This machine does not have it.
        KeyError: There is no such domain.
    """
    documents = {"python": _python, "perl": _perl, "bible": _bible}[name]()
    random.Random(1).shuffle(documents)
    held = len(documents) // _HELD_OUT_ONE_IN
    return Text(tuple(documents[held:]), tuple(documents[:held]))


def windows(tokens: Tensor, length: int, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` windows of `length` tokens at random places, int64 [count, length]."""
    starts = torch.randint(len(tokens) - length + 1, (count,), generator=generator)
    return tokens[starts[:, None] + torch.arange(length)].to(torch.int64)


def sorting(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return exercises `5271=1257.` as bytes, int64 [count, 2 * DIGITS + 1], and the targets, ignored before the answer."""
    digits = torch.randint(10, (count, DIGITS), generator=generator)
    equals, stop = (torch.full((count, 1), ord(sign)) for sign in "=.")
    text = torch.cat([digits + ord("0"), equals, digits.sort(dim=1).values + ord("0"), stop], dim=1)
    targets = text[:, 1:].clone()
    targets[:, : PROMPT - 1] = IGNORED
    return text[:, :-1], targets


def _python() -> list[str]:
    code, prose = read_corpus(2_400_000).general
    return [part for text in (code, prose) for part in _pieces(text.decode("utf-8", "replace"), 8000)]


def _pieces(text: str, length: int) -> list[str]:
    return [text[start : start + length] for start in range(0, len(text), length)]


def _perl() -> list[str]:
    files = sorted({path.resolve() for folder in _PERL for path in folder.rglob("*.p[mo]*") if path.is_file()})
    chosen = [path for path in files if not any(part in str(path) for part in _TABLES) and path.stat().st_size < _LARGEST]
    return _enough([path.read_text("utf-8", "replace") for path in chosen], "perl", "perl-modules")


def _bible() -> list[str]:
    command = shutil.which("bible")
    if command is None:
        raise AssetsUnavailableError("the Bible's text is not installed; Debian has it as bible-kjv")
    lines = subprocess.run([command, "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    chapters: dict[str, list[str]] = {}
    for line in lines:
        place, _, verse = line.partition(" ")
        chapters.setdefault(place.partition(":")[0], []).append(verse)
    return _enough(["\n".join(verses) for verses in chapters.values()], "the Bible", "bible-kjv")


def _enough(documents: Sequence[str], what: str, package: str) -> list[str]:
    if sum(map(len, documents)) < 1_000_000:
        raise AssetsUnavailableError(f"too little text of {what}; Debian has it as {package}")
    return list(documents)
