"""Which metadata of a fine-tune's safetensors files travel in its pack."""

from __future__ import annotations

import json

from deltapack.checkpoint.metadata import Strings

__all__ = ["MAX_BYTES", "MAX_KEYS", "carried_metadata"]

MAX_BYTES, MAX_KEYS = 1 << 20, 10_000
"""What may travel: bytes of keys and strings as the index spells them, and keys. A reader takes four times as much of everything."""


def carried_metadata(metadata: Strings) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the metadata that travel, by folder, and what is to be told of those that are too long, which are the largest."""
    sizes = {
        (folder, key): len(json.dumps([key, text], ensure_ascii=False).encode())
        for folder, strings in metadata.items()
        for key, text in strings.items()
    }
    left_out: dict[tuple[str, str], None] = {}
    total = sum(sizes.values())
    for place, key in enumerate(sorted(sizes, key=lambda key: (-sizes[key], key))):
        if total <= MAX_BYTES and len(sizes) - place <= MAX_KEYS:
            break
        total -= sizes[key]
        left_out[key] = None
    kept = {folder: {key: text for key, text in own.items() if (folder, key) not in left_out} for folder, own in metadata.items()}
    if not left_out:
        return kept, []
    first = next(iter(left_out))
    named = f"{first[1][:60]!r} ({sizes[first]:,} bytes)" + (f" and {len(left_out) - 1} more" if len(left_out) > 1 else "")
    return kept, [f"left out of the metadata: {named}; a pack carries {MAX_BYTES:,} bytes and {MAX_KEYS:,} keys at most"]
