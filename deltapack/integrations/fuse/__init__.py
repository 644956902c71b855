"""deltapack as a file system of the machine: packs of a folder as folders of checkpoints, through FUSE."""

from __future__ import annotations

from deltapack.integrations.fuse.mounting import mount

__all__ = ["mount"]
