"""PEFT adapters: a base with one merged into it, as a checkpoint that is made piece by piece when it is read."""

from __future__ import annotations

from deltapack.adapters.adapted import AdaptedCheckpoint, adapter_folder, is_adapter, open_adapted

__all__ = ["AdaptedCheckpoint", "adapter_folder", "is_adapter", "open_adapted"]
