"""Targets by name."""

from __future__ import annotations

from fuzz.protocol import Target
from fuzz.targets import checkpoints, chunks, devices, exact, folders, packs, parts, recipes, several

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *(packs.INDEX, *chunks.CODEC_TARGETS, exact.EXACT, packs.PACK, parts.PARTS, several.MERGE, devices.DEVICE, devices.LIVE),
        *(checkpoints.SAFETENSORS, checkpoints.TORCH, checkpoints.DISTRIBUTED),
        *(folders.TOKENIZERS, folders.SIDE_FILES, recipes.MERGE_RECIPE, recipes.COMPRESS_RECIPE, folders.ADAPTER),
    )
}
