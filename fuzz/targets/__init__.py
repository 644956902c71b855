"""Targets by name."""

from __future__ import annotations

from fuzz.protocol import Target
from fuzz.targets import packs

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {target.name: target for target in (packs.INDEX, *packs.CODEC_TARGETS, packs.PACK)}
