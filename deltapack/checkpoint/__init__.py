"""Checkpoints: lazy reading by element range, streaming writing, names and side files."""

from __future__ import annotations

from deltapack.checkpoint.config import config_of
from deltapack.checkpoint.conversions import model_names
from deltapack.checkpoint.heads import Head, shards_of_heads
from deltapack.checkpoint.layout import Shard, parse_size, plan_shards, size_of
from deltapack.checkpoint.names import NameMatch, match_names
from deltapack.checkpoint.reader import Checkpoint, TensorInfo, open_checkpoint
from deltapack.checkpoint.sidefiles import LeftOut, SideFile, list_side_files
from deltapack.checkpoint.similar import nearest_names
from deltapack.checkpoint.writer import FileWriter, FolderWriter, open_writer

__all__ = [
    "Checkpoint",
    "FileWriter",
    "FolderWriter",
    "Head",
    "LeftOut",
    "NameMatch",
    "Shard",
    "SideFile",
    "TensorInfo",
    "config_of",
    "list_side_files",
    "match_names",
    "model_names",
    "nearest_names",
    "open_checkpoint",
    "open_writer",
    "parse_size",
    "plan_shards",
    "shards_of_heads",
    "size_of",
]
