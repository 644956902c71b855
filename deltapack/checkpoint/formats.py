"""The kinds of files that hold tensors, as data: how they are called and what reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from deltapack.checkpoint.distributed import METADATA, parse_distributed
from deltapack.checkpoint.safetensors import parse_safetensors
from deltapack.checkpoint.tensors import ParsedFile
from deltapack.checkpoint.torchfile import parse_torch_file
from deltapack.limits import Limits
from deltapack.sources.reading import Readable

__all__ = ["DISTRIBUTED", "FORMATS", "WeightFormat", "format_of"]


@dataclass(frozen=True)
class WeightFormat:
    """One kind of file.

    Attributes:
        suffixes: How its files end, in lower case; the first is the usual one.
        parse: Reads what a file holds, without its elements; raises `CheckpointError`, `LimitError` or `UnsupportedError`.
        whole: Name of the file that holds the whole model of a folder; with `.index.json`, of the index of shards.
        any_name: Whether the only file of a folder, or the only index, may have another name.
        kinds: What `kinds.kind_of` may call its files by their first bytes.
        headed: Whether its files are a head and the elements behind it, so that the two can be kept apart (`heads.py`).
    """

    suffixes: tuple[str, ...]
    parse: Callable[[Readable, Limits], ParsedFile]
    whole: str
    any_name: bool = False
    kinds: tuple[str, ...] = ()
    headed: bool = False

    def __post_init__(self) -> None:
        if not self.suffixes or not self.whole.endswith(self.suffixes) or any(suffix != suffix.lower() for suffix in self.suffixes):
            raise ValueError(f"no such format: {self}")

    @property
    def index(self) -> str:
        """Name of the index of shards."""
        return f"{self.whole}.index.json"

    @property
    def names(self) -> tuple[str, ...]:
        """What a folder may hold, in words."""
        return (self.whole, self.index, *([f"one other {self.suffixes[0]}"] if self.any_name else []))


FORMATS: tuple[WeightFormat, ...] = (
    WeightFormat((".safetensors",), parse_safetensors, "model.safetensors", any_name=True, kinds=("safetensors",), headed=True),
    WeightFormat((".bin", ".pt", ".pth"), parse_torch_file, "pytorch_model.bin", kinds=("torch", "pickle")),
    WeightFormat((".bin",), parse_torch_file, "diffusion_pytorch_model.bin", kinds=("torch", "pickle")),
)
"""Formats in the order in which a folder is searched for them."""

DISTRIBUTED = WeightFormat((METADATA,), parse_distributed, METADATA, kinds=("pickle",))
"""What a folder without any of these may be: its file of metadata stands for all of it, and is never a checkpoint by itself."""


def format_of(name: str) -> WeightFormat | None:
    """Return the format of a file by its name; none where no format has its suffix."""
    suffix = PurePath(name).suffix.lower()
    return next((row for row in FORMATS if suffix in row.suffixes), None)
