"""What config.json of a checkpoint says: for hints and names, never for what is restored."""

from __future__ import annotations

import json
from typing import Any

from deltapack.checkpoint.reader import Checkpoint
from deltapack.errors import CheckpointError

__all__ = ["config_of"]

_LARGEST = 1 << 22


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return config.json of a checkpoint; empty where there is none, or none that can be read: no pack depends on it."""
    file = checkpoint.side_file("config.json")
    try:
        config = json.loads(file.read()) if file is not None and file.size <= _LARGEST else {}
    except (CheckpointError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
